"""The generated page is up to date, and the worked example of docs/rules.md runs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_catalogue_is_what_the_code_says() -> None:
    done = run("tools/make_catalogue.py", "--check")
    assert done.returncode == 0, done.stderr


def test_the_worked_example_of_a_rule_minimizes_its_loss() -> None:
    done = run("examples/own_rule.py")
    assert done.returncode == 0, done.stderr
    losses = [float(line.split("loss ")[1]) for line in done.stdout.splitlines()]
    assert len(losses) == 2
    assert losses[0] < 1e-2
    assert abs(losses[0] - losses[1]) <= 1e-6 * losses[0]
