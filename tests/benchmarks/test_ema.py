"""benchmarks/ema.py on miniature sets; the times it gives there mean nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ema.py"


def test_miniature(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--sets", "small", "--json", str(tmp_path / "a.json")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads that wait for one another take minutes on a busy machine
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {(row["case"], row["contender"]): row for row in json.loads((tmp_path / "a.json").read_text())["rows"]}
    for case, width in (("one", 12), ("two", 20), ("mixed", 10)):
        row = rows[case, "polyak"]
        assert row["bytes"] == width * row["elements"] and row["ms"] >= row["min_ms"] > 0
        assert rows[case, "polyak, checked"]["deviation"] == 0
    assert rows["one", "torch AveragedModel"]["deviation"] < 1e-6
    assert rows["two", "2 x torch AveragedModel"]["ms"] > 0
