"""benchmarks/outcomes.py: the page says of each method whether it trains."""

import subprocess
import sys
from pathlib import Path

import pytest

from polyak import lab

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def outcomes(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "outcomes", raising=False)
    import outcomes

    return outcomes


def problem(steps=7, **medians):
    shared = {"steps": steps, "trials": 4, "seeds": 3, "setting": {"lr": 0.0123456}}
    return {name: {**shared, "median": median} for name, median in medians.items()}


def test_what_falls_short_is_marked_and_named(outcomes):
    pictures = problem(adamw=0.97, sgd=0.95, lion=None)
    pictures |= problem(steps=20, muon=0.96)
    page = outcomes.written({"digits-cnn": pictures, "stdlib-lm": problem(adamw=2.0, lion=2.05, muon=2.07)})
    assert "| `adamw` | 0.970 | 2.000 | 1.000 | lr=0.0123 |" in page
    assert "| `sgd` | **0.950** |" in page and "| `lion` | **no result** | 2.050 | 1.025 |" in page
    assert "| `muon` | 0.960 | **2.070** | 1.035 |" in page
    assert "With a budget of its own: muon 20 steps, 4 trials." in page
    assert "Did not pass 95% on digits-cnn: lion, sgd." in page
    assert "Did not come within 3% of AdamW on stdlib-lm: muon." in page
    assert "Not run on digits-cnn: adabelief, adam," in page and "(7 steps, 4 trials)" in page


def test_what_was_not_run_is_not_said_to_have_trained(outcomes):
    page = outcomes.written({"digits-cnn": problem(adamw=0.97)})
    assert "All pass 95% on digits-cnn." in page and "AdamW on stdlib-lm." not in page


def test_the_last_comparison_of_a_method_counts(outcomes, tmp_path):
    store = tmp_path / "runs.db"
    few = {"trials": 1, "seeds": 1, "store": store, "timing": False, "workers": 1}
    lab.compare("digits-cnn", ["adamw"], steps=2, **few)
    lab.compare("digits-cnn", ["adamw", "sgd"], steps=3, **few)
    lab.compare("digits-cnn", ["sgd"], steps=4, **few)
    found = outcomes.outcomes(store)
    assert {name: one["steps"] for name, one in found["digits-cnn"].items()} == {"adamw": 3, "sgd": 4}


@pytest.mark.slow
def test_miniature(tmp_path):
    places = [f"--{name}={tmp_path / name}" for name in ("json", "page", "store")]
    subprocess.run([sys.executable, str(FOLDER / "outcomes.py"), "--quick", "--workers=1", *places], check=True)
    assert "(2 steps, 1 trials)" in (tmp_path / "page").read_text()
