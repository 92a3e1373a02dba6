"""A worker: a process of its own that makes one run after another, and the handle by which it is led.

A problem that crashes takes only its worker along. A worker does not outlive the process that started it, however
that ends, so a command that was killed leaves nothing behind that computes.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path

from polyak.lab.problems import LoadedProblem, load
from polyak.lab.spec import RunSpec
from polyak.lab.train import Outcome, make

GRACE_SECONDS = 5.0
OUTPUT_KEPT = 2000  # characters of a crashed worker's last words


def serve(pipe: Connection, output: str) -> None:
    """The life of a worker: receive a run, make it, send what it came to."""
    # The first call of any torch optimizer imports torch._dynamo; no method is to be charged with those seconds.
    import torch._dynamo

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that leads
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with open(output, "wb") as sink:  # what a problem prints would tear the progress display apart
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    torch.set_num_threads(1)
    loaded: dict[str, LoadedProblem] = {}
    while True:
        try:
            spec: RunSpec = pipe.recv()
        except EOFError:
            return
        pipe.send(_run(spec, loaded))


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _run(spec: RunSpec, loaded: dict[str, LoadedProblem]) -> Outcome:
    try:
        if spec.reference not in loaded:
            loaded[spec.reference] = load(spec.reference)
    except Exception as error:
        return Outcome("failed", detail={"error": f"{type(error).__name__}: {error}"})
    problem = loaded[spec.reference]
    if problem.digest != spec.source:
        return Outcome("failed", detail={"error": f"{spec.reference} changed after the comparison had begun"})
    return make(problem.problem, spec)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back, here for a moment and for what is started for good: it is for the process that leads.

    A worker ignores it as soon as its code is there; before, while Python starts, it would end with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker:
    """A worker process seen from the one that leads it."""

    def __init__(self) -> None:
        context = get_context("spawn")
        handle, self._output = tempfile.mkstemp(prefix="polyak-worker-")
        os.close(handle)
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._output), name="polyak-worker")
        with _interrupts_held():
            self._process.start()
        theirs.close()
        self.spec: RunSpec | None = None

    def begin(self, spec: RunSpec) -> None:
        """Start a run; the worker must be idle."""
        self.spec = spec
        with suppress(OSError):  # it died while idle; collect() will say so
            self.pipe.send(spec)

    def collect(self) -> tuple[RunSpec, Outcome, bool]:
        """The run that ended, what it came to, and whether the worker still lives. Waits if it has not ended."""
        assert self.spec is not None
        spec, self.spec = self.spec, None
        try:
            return spec, self.pipe.recv(), True
        except (EOFError, OSError):
            self._process.join()
            return spec, Outcome("crashed", detail={"error": self._last_words()}), False

    def _last_words(self) -> str:
        code = self._process.exitcode or 0
        cause = f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.Signals(-code).name})"
        output = Path(self._output).read_text(errors="replace")[-OUTPUT_KEPT:]
        return f"the worker process ended with {cause}\n{output}".rstrip()

    def stop(self) -> None:
        """End the process: at its leisure when it is idle, at once when it is busy, and what it was doing is lost."""
        self.pipe.close()
        if self.spec is None:
            self._process.join(GRACE_SECONDS)
        self._process.kill()
        self._process.join()
        Path(self._output).unlink(missing_ok=True)
