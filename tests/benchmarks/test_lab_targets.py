"""benchmarks/lab_targets.py: how it rounds, and all of it with two steps a run."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("lab_targets")


@pytest.mark.parametrize(
    ("metric", "higher", "target"),
    [(0.9777, True, 0.97), (0.97, True, 0.97), (0.0331, False, 0.034), (2.71, False, 2.8), (1.2e-7, False, 1.2e-7)],
)
def test_a_target_is_rounded_to_the_easier_side(script, metric, higher, target):
    assert script.eased(metric, higher) == target


def test_miniature(tmp_path):
    results = tmp_path / "targets.json"
    for problem in ("deep-linear", "wine-mlp"):
        command = [sys.executable, str(BENCHMARKS / "lab_targets.py"), problem, "--steps", "2", "--json", str(results)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    problems = json.loads(results.read_text())["problems"]
    assert list(problems) == ["wine-mlp", "deep-linear"]  # in the order of the lab's own list
    for row in problems.values():
        assert len(row["metrics"]) == 3 and row["steps"] == 2
        assert 0 <= row["target"] - max(row["metrics"]) <= 0.1 * row["target"]
        assert {row["baseline"], row["others"][0]["baseline"]} == {"sgd", "adamw"}


def test_unknown_problems_are_refused():
    command = [sys.executable, str(BENCHMARKS / "lab_targets.py"), "rosenbrock"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "rosenbrock: choose from digits-cnn" in done.stderr
