"""Start a module of the tests as one process, or several in a gloo group, and wait for them, but not for ever.

A rank's verdict is what it wrote, and the code it chose: it flushes and leaves by ``os._exit``, since torch's gloo now
and then aborts a process that has done its work and tears its threads down.
"""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import polyak

ROOT = Path(__file__).parents[1]
KILLED = -signal.SIGKILL
COLLECTIVE = timedelta(seconds=100)  # a rank that waits longer for the others fails
GRACE = 5.0  # seconds that the others have once a rank has ended as it should not


def environment(**more: Any) -> dict[str, str]:
    """What a child needs to import polyak and these tests, with one thread each."""
    paths = [str(ROOT), str(Path(polyak.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    own = {"PYTHONPATH": os.pathsep.join(p for p in paths if p), **{k: str(v) for k, v in more.items()}}
    return {**os.environ, **quiet, **own}


def start(module: str, log: Path, *arguments: Any, **variables: Any) -> subprocess.Popen[bytes]:
    """``python -m tests.<module> <arguments>``, its output in ``log``."""
    command = [sys.executable, "-m", f"tests.{module}", *map(str, arguments)]
    with log.open("wb") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment(**variables), stdout=output, stderr=subprocess.STDOUT
        )


def launch(
    module: str, folder: Path, *cases: str, world: int = 2, timeout: float = 300, expect: int | tuple[int, ...] = 0
) -> list[str]:
    """Do ``cases`` of ``tests.<module>`` on ``world`` ranks; what each of them printed.

    Every rank must end in time with the code ``expect``, or each with its own of as many codes as there are ranks.
    """
    wanted = (expect,) * world if isinstance(expect, int) else expect
    folder.mkdir(parents=True, exist_ok=True)
    rendezvous = folder / f"rendezvous-{time.monotonic_ns()}"
    logs = [folder / f"{rendezvous.name}-{rank}.log" for rank in range(len(wanted))]
    group = {"WORLD_SIZE": len(wanted), "RENDEZVOUS": rendezvous}
    ranks = [
        start(module, log, folder, *cases, **({**group, "RANK": rank} if len(wanted) > 1 else {}))
        for rank, log in enumerate(logs)
    ]
    deadline = time.monotonic() + timeout
    try:
        while any(p.poll() is None for p in ranks) and time.monotonic() < deadline:
            if any(p.poll() not in (None, code) for p, code in zip(ranks, wanted, strict=True)):
                deadline = min(deadline, time.monotonic() + GRACE)  # the others wait for one that will not come
            time.sleep(0.02)
    finally:
        ended = tuple(p.poll() for p in ranks)
        for p in ranks:
            p.kill()
            p.wait()
    output = [log.read_text(errors="replace") for log in logs]
    if ended != wanted:
        said = "\n".join(f"--- rank {i}\n{text[-4000:]}" for i, text in enumerate(output))
        raise AssertionError(f"{module} {cases} ended with {ended}, not {wanted} (None: it hung)\n{said}")
    return output


def work(cases: dict[str, Any]) -> NoReturn:
    """A rank's life: enter the group and do the cases on the command line, each ``function:argument:...``.

    The first rank leaves the result of each case in the folder, under the name of the case.
    """
    try:
        _work(cases)
        leave(0)
    except SystemExit as exit:
        leave(exit.code if isinstance(exit.code, int) else int(exit.code is not None))
    except BaseException:
        traceback.print_exc()
        leave(1)


def _work(cases: dict[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo", f"file://{os.environ['RENDEZVOUS']}", COLLECTIVE, world, rank)
    folder = Path(sys.argv[1])
    for case in sys.argv[2:]:
        name, *arguments = case.split(":")
        torch.manual_seed(0)
        result = cases[name](folder, *arguments)
        if rank == 0:
            torch.save(result, folder / f"{case}.pt")
    if world > 1:
        dist.barrier()  # no rank's connections close while another still reads from them


def leave(code: int) -> NoReturn:
    """End this process with ``code`` and all that it said, and without tearing anything down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def result(folder: Path, case: str) -> Any:
    """What the first rank left of a case."""
    import torch

    path = folder / f"{case}.pt"
    assert path.exists(), f"the ranks did not get to {case}"
    return torch.load(path)


def die(*_: Any) -> NoReturn:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives")


def die_together(*_: Any) -> NoReturn:
    """A case in which all ranks end so, once all have come to it."""
    import torch.distributed as dist

    dist.barrier()
    die()


def killed(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function that kills its process, in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            function(*arguments)
        finally:
            leave(1)  # it was not killed
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{function.__name__} ended by itself"
