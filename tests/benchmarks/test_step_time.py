"""benchmarks/step_time.py on miniature sets; the numbers it gives there mean nothing."""

import json
import os
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(path: Path, *arguments: str) -> tuple[str, dict]:
    command = [sys.executable, str(BENCHMARKS / "step_time.py"), "--quick", "--json", str(path), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads that wait for one another take minutes on a busy machine
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, json.loads(path.read_text())


def test_without_a_compiler(tmp_path):
    options = ("--methods", "adamw,adamp,muon", "--sets", "medium,small", "--execution", "batched")
    printed, found = run(tmp_path / "a.json", *options, "--libraries", "torch.optim", "--no-first-step")
    rows = {(row["method"], row["set"], row["contender"]): row for row in found["rows"]}
    assert set(found["sets"]) == {"medium", "small"}
    for label in ("polyak", "torch.optim", "torch.optim foreach", "torch.optim fused"):
        row = rows["adamw", "medium", label]
        assert row["ms"] >= row["min_ms"] > 0 and label in printed
        assert row["must_bytes"] == 7 * 4 * found["sets"]["medium"]["elements"]
        assert row["deviation"] is None or row["deviation"] < 1e-3
    assert rows["adamw", "medium", "torch.optim"]["extra_bytes"] > 0
    assert rows["adamp", "small", "polyak"]["second_pass_bytes"] > 0
    assert rows["muon", "medium", "polyak bfloat16"]["deviation"] < 0.02
    assert found["machine"]["threads"] >= 1 and found["first_steps"] == {}


@pytest.mark.slow
def test_compiled_with_first_steps(tmp_path):
    _, found = run(tmp_path / "b.json", "--methods", "adamw", "--sets", "medium,small", "--libraries", "timm")
    for row in found["rows"]:
        if row["contender"] == "polyak":
            assert row["kernels"]["new_lr"] == 0
            assert row["kernels"]["here"] <= (2 if row["set"] == "medium" else 0)
    for steps in found["first_steps"].values():
        assert steps["warm"]["first_step_s"] < steps["cold"]["first_step_s"]
        assert steps["warm"]["import_loads"] == []


def test_parameter_sets_are_as_documented(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _sets

    about = {"medium": (97, 17e6), "small": (1000, 1e6), "large": (30, 100e6)}
    for name, (tensors, elements) in about.items():
        shapes = dict(_sets.SHAPES[name]())
        assert len(shapes) == tensors
        assert sum(map(prod, shapes.values())) == pytest.approx(elements, rel=0.01)


def test_a_variant_that_polyak_lacks_is_left_out(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _peers

    known = {"a variant": {"lr": 1e-3}, "none": {"no_such_argument": 1}}
    monkeypatch.setitem(_peers.METHODS, "adamw", _peers.Method({"lr": 1e-3}, also=known))
    assert [one.label for one in _peers.contenders("adamw", "eager", ())] == ["polyak", "polyak a variant"]


def test_eight_bits_are_held_against_eight_bits(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _peers

    for method in ("adam", "adamw"):
        spec = _peers.METHODS[method]
        assert {peer.library: peer.beside for peer in spec.peers}["torchao.optim"] == "int8"
        assert "int8" in spec.also
