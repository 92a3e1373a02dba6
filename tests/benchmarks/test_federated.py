"""benchmarks/federated.py and the picture of proofs_federated.py, at a size of seconds."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import federated

    return federated


def test_every_rule_is_measured(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "byzfl", lambda: None)
    path = tmp_path / "found.json"
    script.main(
        ["aggregators", "--workers", "9", "--size", "50", "--num-byzantine", "2", "--rounds", "1", "--json", str(path)]
    )
    rows = json.loads(path.read_text())["aggregators"]["rows"]
    assert {row["rule"] for row in rows} == set(script.aggregators.names()) and len(rows) == 2 * len(
        set(script.aggregators.names())
    )
    assert "trimmed_mean" in capsys.readouterr().out


def test_goals(script):
    row = {"rule": "krum", "dtype": "float32", "times": {}, "ratios": {"byzfl, torch": 0.9}, "extra": 0.1}
    assert script.missed([row]) == []
    assert "krum float32: 1.50 of the time" in script.missed([{**row, "ratios": {"byzfl, torch": 1.5}}])[0]
    assert script.missed([{**row, "rule": "nna"}]) and script.missed([{**row, "extra": 1.2}])


def test_picture_and_shares(script, monkeypatch):
    from _federated_report import picture
    from proofs_federated import shares

    cells = {"ALIE": {"mean": 0.97, "least": 0.9}, "SF": {"mean": 0.1, "least": 0.1}}
    drawn = picture({"NNA": cells, "clean": {"mean": 0.9, "least": 0.9}}, "a < b")
    assert "97.0 %" in drawn and "clean" not in drawn
    ElementTree.fromstring(drawn)
    y = torch.arange(300) % 10
    held = shares(y, 7, 1.0, 0)
    assert len(held) == 7 and torch.cat(held).sort().values.tolist() == list(range(300))
