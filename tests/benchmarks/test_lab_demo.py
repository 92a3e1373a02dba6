"""benchmarks/lab_demo.py: how it counts, and all of it with two methods and five steps a run."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_agreement(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("lab_demo")
    rows = [{"best": best, "calls": {"lion": call}} for best, call in (("a", "worse"), ("b", "worse"), ("a", "better"))]
    assert script.agreement(rows) == {"of": 3, "best": ["a", 2], "calls": {"lion": ("worse", 2)}}


@pytest.mark.slow
def test_miniature_goes_on_where_it_was(tmp_path):
    written = tmp_path / "demo.json"
    command = [sys.executable, str(BENCHMARKS / "lab_demo.py"), "--quick", "--workers", "2"]
    for repeats in ("1", "2"):
        subprocess.run(
            [*command, "--repeats", repeats, "--store", str(tmp_path / "demo.db"), "--json", str(written)], check=True
        )
    found = json.loads(written.read_text())
    assert found["of"] == 2 and [row["tuning_seed"] for row in found["repeats"]] == [0, 1]
    assert set(found["repeats"][0]["calls"]) == {"sgd"}
