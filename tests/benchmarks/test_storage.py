"""benchmarks/storage.py: its table and picture from made-up runs, and the script itself on a few steps."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _storage_report

    return _storage_report


def row(method, storage, curve, **more):
    return {
        "method": method, "storage": storage, "seed": 0, "curve": curve, "loss": curve[-1], "metric": 3.0,
        "bytes": 8.0, "ms": 2.0, **more,
    }  # fmt: skip


def test_the_table_sets_each_storage_beside_float32(report):
    rows = [
        row("adamw", "float32", [3.0, 2.0]),
        row("adamw", "int8", [3.0, 2.25], bytes=2.031, ms=3.0),
        row("adamw", "int8", [3.0, 2.75], bytes=2.031, ms=3.0, seed=1),
    ]
    _, first, second = report.table(rows).splitlines()
    assert first.split() == ["adamw", "float32", "2.0000", "+0.0000", "3.0000", "8.000", "1.00x"]
    assert second.split() == ["adamw", "int8", "2.5000", "+0.5000", "3.0000", "2.031", "1.50x"]


def test_a_method_without_float32_has_no_comparison(report):
    assert report.table([row("lion", "int8", [1.0])]).splitlines()[1].split() == [
        "lion", "int8", "1.0000", "3.0000", "8.000",
    ]  # fmt: skip


def test_the_picture_draws_every_run_and_skips_what_diverged(report):
    rows = [row("a&b", "float32", [3.0, 2.0]), row("a&b", "int8", [3.0, math.nan]), row("lion", "bfloat16", [1.0, 1.0])]
    root = ElementTree.fromstring(report.picture(rows, "caption"))
    lines = [one for one in root.iter() if one.tag.endswith("polyline")]
    assert [len(line.get("points").split()) for line in lines] == [2, 1, 2]


def test_the_script(tmp_path):
    path = tmp_path / "storage.json"
    options = ("--quick", "--methods", "adamw", "--storages", "float32", "--steps", "2", "--json", str(path))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"}
    command = [sys.executable, str(BENCHMARKS / "storage.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    (only,) = json.loads(path.read_text())["rows"]
    assert only["bytes"] == pytest.approx(8.0, rel=1e-3)
    assert 4 < only["loss"] < 7
    assert only["ms"] > 0
    assert "adamw" in done.stdout
    assert path.with_suffix(".svg").exists()
