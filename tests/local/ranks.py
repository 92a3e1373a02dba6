"""Two processes in a gloo group that do cases of a module of this folder."""

import subprocess
import sys
import time
from pathlib import Path

from tests.optim.ranks import ROOT, environment


def launch(module: str, folder: Path, *cases: str, expect: tuple[int, ...] = (0, 0), timeout: float = 120) -> list[str]:
    """Do ``cases`` on as many ranks as ``expect`` has exit codes, each of which must come in time; their output."""
    folder.mkdir(parents=True, exist_ok=True)
    rendezvous = folder / f"rendezvous-{time.monotonic_ns()}"
    group = {"WORLD_SIZE": len(expect), "RENDEZVOUS": rendezvous}
    logs = [folder / f"{rendezvous.name}-{rank}.log" for rank in range(len(expect))]
    running = []
    for rank, log in enumerate(logs):
        with log.open("wb") as output:
            command = [sys.executable, "-m", f"tests.local.{module}", str(folder), *cases]
            variables = environment(**group, RANK=rank)
            running.append(subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT))
    deadline = time.monotonic() + timeout
    try:
        while any(p.poll() is None for p in running) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        ended = tuple(p.poll() for p in running)
        for p in running:
            p.kill()
            p.wait()
    output = [log.read_text() for log in logs]
    assert ended == expect, f"{cases} ended with {ended} (None: it hung)\n" + "\n---\n".join(o[-3000:] for o in output)
    return output
