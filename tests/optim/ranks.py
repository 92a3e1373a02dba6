"""Start a module of this folder as one process, or several in a gloo group, and wait for them, but not for ever."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import polyak

ROOT = Path(__file__).parents[2]
KILLED = -signal.SIGKILL
COLLECTIVE = timedelta(seconds=20)  # a rank that waits longer for the others fails


def environment(**more: Any) -> dict[str, str]:
    """What a child needs to import polyak and these tests, with one thread each."""
    paths = [str(ROOT), str(Path(polyak.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    own = {"PYTHONPATH": os.pathsep.join(p for p in paths if p), **{k: str(v) for k, v in more.items()}}
    return {**os.environ, **quiet, **own}


def start(module: str, log: Path, *arguments: Any, **variables: Any) -> subprocess.Popen[bytes]:
    """``python -m <module> <arguments>``, its output in ``log``; a name without dots is one of this folder."""
    name = module if module.startswith("tests.") else f"tests.optim.{module}"
    command = [sys.executable, "-m", name, *map(str, arguments)]
    with log.open("wb") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment(**variables), stdout=output, stderr=subprocess.STDOUT
        )


def launch(module: str, folder: Path, *cases: str, world: int = 2, timeout: float = 120, expect: int = 0) -> None:
    """Do ``cases`` of ``module`` on ``world`` ranks; every rank must end with the code ``expect``, in time."""
    folder.mkdir(parents=True, exist_ok=True)
    rendezvous = folder / f"rendezvous-{time.monotonic_ns()}"
    logs = [folder / f"{rendezvous.name}-{rank}.log" for rank in range(world)]
    group = {"WORLD_SIZE": world, "RENDEZVOUS": rendezvous}
    ranks = [
        start(module, log, folder, *cases, **({**group, "RANK": rank} if world > 1 else {}))
        for rank, log in enumerate(logs)
    ]
    deadline = time.monotonic() + timeout
    try:
        while any(p.poll() is None for p in ranks) and time.monotonic() < deadline:
            if any(p.poll() not in (None, expect) for p in ranks):
                deadline = min(deadline, time.monotonic() + 2)  # the others wait for one that will not come
            time.sleep(0.02)
    finally:
        ended = [p.poll() for p in ranks]
        for p in ranks:
            p.kill()
            p.wait()
    if ended != [expect] * world:
        output = "\n".join(f"--- rank {i}\n{log.read_text()[-4000:]}" for i, log in enumerate(logs))
        raise AssertionError(f"{module} {cases} ended with {ended} (None: it hung)\n{output}")


def work(cases: dict[str, Any]) -> None:
    """A rank's life: enter the group and do the cases on the command line, each ``function:argument:...``.

    The first rank leaves the result of each case in the folder, under the name of the case.
    """
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo", f"file://{os.environ['RENDEZVOUS']}", COLLECTIVE, world, rank)
    folder = Path(sys.argv[1])
    for case in sys.argv[2:]:
        name, *arguments = case.split(":")
        result = cases[name](folder, *arguments)
        if rank == 0:
            torch.save(result, folder / f"{case}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()  # else gloo's threads may be ended in the middle of something


def result(folder: Path, case: str) -> Any:
    """What the first rank left of a case."""
    import torch

    path = folder / f"{case}.pt"
    assert path.exists(), f"the ranks did not get to {case}"
    return torch.load(path)


def die(*_: Any) -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function that kills its process, in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            function(*arguments)
        finally:
            sys.stderr.flush()
            os._exit(1)  # it was not killed
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{function.__name__} ended by itself"
