"""benchmarks/lab_overhead.py with a few short runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "lab_overhead.py"


@pytest.mark.slow
def test_a_few_short_runs(tmp_path):
    target = tmp_path / "overhead.json"
    env = {**os.environ, "POLYAK_EXECUTION": "batched"}
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(target)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    rows = json.loads(target.read_text())
    assert rows["overhead"]["runs"] == 8 and 0 < rows["overhead"]["share"] < 1
    assert rows["overhead"]["seconds_a_later_run"] > 0
    assert rows["resumed"]["runs"] == 18 and rows["resumed"]["found_seconds"] > 0
