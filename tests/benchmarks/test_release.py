"""benchmarks/release.py on a small model."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "release.py"


def test_released_gradients_are_never_all_there(tmp_path):
    target = tmp_path / "release.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--methods", "adamw,sgd", "--json", str(target)]
    env = {**os.environ, "POLYAK_EXECUTION": "batched"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(target.read_text())["rows"]
    assert [row["method"] for row in rows] == ["adamw", "sgd"]
    for row in rows:
        assert row["usual_mb"] > row["weights_mb"]  # all gradients at once
        assert row["released_mb"] < 0.8 * row["usual_mb"]
