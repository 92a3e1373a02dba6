"""Programs in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python(*arguments: str, threads: int = 1, **environment: str) -> str:
    """What ``python ARGUMENTS`` prints, run at the root of the repository; an error is shown in full."""
    inherited = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in (str(ROOT), *sys.path) if p)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**inherited, "OMP_NUM_THREADS": str(threads), **environment},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
