"""benchmarks/reality_check: every method has a claim, the page says what was found, and all of it in miniature."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from polyak.optim.create import KNOWN

FOLDER = Path(__file__).parents[2] / "benchmarks" / "reality_check"


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import _page

    return _page


def test_every_method_has_a_claim(page):
    assert set(page.CLAIMS) == set(KNOWN)


def method(call="equivalent", difference=0.0, median=0.5):
    ends = {"low": difference - 1, "high": difference + 1}
    return {"median": median, "difference": difference, **ends, "call": call, "failures": []}


def test_the_page_says_what_was_found(page):
    lost = {**method("worse"), "difference": None, "low": None, "high": None, "failures": [{"reason": "NaN"}] * 3}
    methods = {"adamw": method(), "sgd": method("better", 2.0), "lion": method("unsettled", -0.25), "muon": lost}
    one = {
        "reference": "adamw", "metric": "error", "higher_is_better": False, "steps": 7, "margin": 0.25,
        "sentence": "use sgd", "methods": methods,
    }  # fmt: skip
    text = page.written({"trials": 4, "seeds": 3, "problems": {"one": one, "two": one}})
    assert (
        "- **one** (error, less is better, 7 steps, margin 0.25): better: `sgd`; worse: `muon`; not settled: 1." in text
    )
    assert "| `sgd` | **0.5: +2 [+1, +3] better** | **0.5: +2 [+1, +3] better** |" in text
    assert "| `lion` | 0.5: -0.25 [-1.2, +0.75] |" in text and "| `muon` | worse, 3 runs lost |" in text
    assert "better on 2 |" in text and "not settled on 2 |" in text and "| the reference |" in text
    assert "With 3 seeds and 3 methods" in text


@pytest.mark.slow
def test_miniature(tmp_path):
    files = {"--store": "runs.db", "--json": "found.json", "--page": "page.md"}
    paths = [part for option, name in files.items() for part in (option, str(tmp_path / name))]
    command = [sys.executable, str(FOLDER / "run.py"), "--quick", "--problems", "deep-linear", "--workers", "1", *paths]
    subprocess.run([*command, "--methods", "adamw,sgd"], check=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["problems"]["deep-linear"]["methods"]) == {"adamw", "sgd"}
    assert "## Results, and differences to AdamW" in (tmp_path / "page.md").read_text()
