"""The generated files are up to date, the worked example of docs/rules.md runs, and Python in the pages is Python."""

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300)


TOOLS = ["make_catalogue.py", "make_composition.py", "make_ecosystem.py", "make_lists.py", "make_speed.py"]


@pytest.mark.parametrize("tool", TOOLS)
def test_what_is_made_from_the_methods_is_up_to_date(tool: str) -> None:
    done = run(f"tools/{tool}", "--check")
    assert done.returncode == 0, done.stderr


def test_the_worked_example_of_a_rule_minimizes_its_loss() -> None:
    done = run("examples/own_rule.py")
    assert done.returncode == 0, done.stderr
    losses = [float(line.split("loss ")[1]) for line in done.stdout.splitlines()]
    assert len(losses) == 3
    assert losses[0] < 1e-2
    assert abs(losses[0] - losses[1]) <= 1e-6 * losses[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_is_python(page: Path) -> None:
    for _, code in re.findall(r"^( *)```python\n(.*?)^\1```", page.read_text(), re.S | re.M):
        ast.parse(textwrap.dedent(code), str(page))
