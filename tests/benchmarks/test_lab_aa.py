"""benchmarks/lab_aa.py with a few steps a run, and what its committed results say."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_miniature(tmp_path):
    results = tmp_path / "aa.json"
    command = [sys.executable, str(BENCHMARKS / "lab_aa.py"), "--quick", "--json", str(results)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(results.read_text())
    assert [row["tuning_seed"] for row in report["repeats"]] == [0] and set(report["called"]) == {"5", "8"}
    for row in report["repeats"]:
        assert set(row["settings"]) == {"adamw", "adamw (2)"} and set(row["calls"]) == {"5", "8"}
        assert row["one_setting"] == (row["settings"]["adamw"] == row["settings"]["adamw (2)"])
        assert not row["one_setting"] or {one["difference"] for one in row["calls"].values()} == {0.0}
    assert "of 1 self-tests call a difference, 5% allowed" in done.stdout


def test_twenty_real_self_tests_call_at_most_one_difference():
    report = json.loads((BENCHMARKS / "results" / "lab_aa.json").read_text())
    assert [row["tuning_seed"] for row in report["repeats"]] == list(range(20))
    for seeds, called in report["called"].items():
        calls = [row["calls"][seeds]["call"] for row in report["repeats"]]
        assert called == sum(call in ("better", "worse") for call in calls) <= 1
