"""The first step of a fresh process: run as a script, prints one line of JSON.

python benchmarks/_first_step.py METHOD SET DEVICE EXECUTION QUICK
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TORCH = "torch"  # torch.optim.AdamW, for its own first step


def measured(method: str, which: str, device: str, execution: str, quick: bool) -> dict[str, Any]:
    """Seconds for the import and the first steps in this process, and kernels that they compiled or loaded."""
    import torch

    before = set(sys.modules)
    start = time.perf_counter()
    import polyak.optim  # noqa: F401

    imported = time.perf_counter() - start
    compilers = sorted({"torch._dynamo", "torch._inductor"} & (set(sys.modules) - before))

    import _measure
    import _peers
    import _sets

    tensors = _sets.make(which, device, quick)
    start = time.perf_counter()
    if method == TORCH:
        optimizers: list[Any] = [torch.optim.AdamW(tensors.params.values(), fused=True)]
    else:
        optimizers = next(_peers.contenders(method, execution, ())).build(tensors.params)
    built = time.perf_counter() - start
    tensors.restore()
    first, second = (_measure.timed(lambda: [_peers.step(o) for o in optimizers], device) for _ in range(2))
    return {
        "import_s": imported, "import_loads": compilers, "build_s": built, "first_step_s": first,
        "second_step_s": second, "kernels": _measure.kernels(), "threads": torch.get_num_threads(),
    }  # fmt: skip


def cold_and_warm(method: str, which: str, device: str, execution: str, quick: bool) -> dict[str, dict[str, Any]]:
    """The first step with an empty cache, in a second process that finds the first one's, and torch.optim's own."""
    command = [sys.executable, str(Path(__file__).resolve()), method, which, device, execution, str(int(quick))]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        own = {
            "POLYAK_CACHE": f"{cache}/polyak",
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TRITON_CACHE_DIR": f"{cache}/triton",
        }
        env = {**os.environ, **own}
        found = {name: _run(command, env) for name in ("cold", "warm")}
        return {**found, TORCH: _run([*command[:2], TORCH, *command[3:]], env)}


def _run(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the first step failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    print(json.dumps(measured(*sys.argv[1:5], quick=sys.argv[5] == "1")))
