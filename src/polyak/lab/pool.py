"""Workers as the process that leads sees them: started when there is something to do, replaced when they die.

A problem that crashes or hangs takes only its worker along.
"""

from __future__ import annotations

import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from polyak.lab.errors import BadInput, LabError
from polyak.lab.loops import Outcome
from polyak.lab.places import Places, environment
from polyak.lab.spec import RunSpec

GRACE_SECONDS = 5.0
LOADING_SECONDS = 60.0  # that a problem may take to load beyond the time of a run
OUTPUT_KEPT = 2000  # characters of a crashed worker's last words
# With the path of the process that leads, a worker finds the same modules, whatever lies in the working folder.
COMMAND = "import sys; sys.path[:] = sys.argv[1:]; sys.argv[1:] = []; from polyak.lab.worker import main; main()"

Told = Callable[[RunSpec, int, int | None], None]


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int
    steps: int | None


@dataclass(frozen=True)
class Refused:
    """Why a worker will make no run of a problem."""

    line: str


@dataclass(frozen=True)
class Worn:
    """An earlier run left something in a worker that others would find: a fresh one is to make what it was given."""


class _Gone:
    """A worker has ended."""


class Worker:
    """A worker process on a device. ``inbox`` gets ``(worker, answer)`` for everything that it says."""

    def __init__(self, inbox: queue.Queue[tuple[Worker, Any]], device: str = "") -> None:
        self.device = device
        self.spec: RunSpec | None = None
        self.began = time.monotonic()
        self.told: Progress | None = None
        handle, self._output = tempfile.mkstemp(prefix="polyak-worker-")
        # A session of its own: Ctrl-C does not reach it, and whatever processes it starts can be ended with it.
        with os.fdopen(handle, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
                # Sets of strings have one order in all workers.
                env={**os.environ, "PYTHONHASHSEED": "0", **environment(device)},
            )
        self._listener = threading.Thread(target=self._listen, args=(inbox,), daemon=True)
        self._listener.start()

    def _listen(self, inbox: queue.Queue[tuple[Worker, Any]]) -> None:
        assert self._process.stdout is not None
        with suppress(Exception):  # it ended in the middle of a word
            while True:
                inbox.put((self, pickle.load(self._process.stdout)))
        inbox.put((self, _Gone()))

    def has_left_others(self) -> bool:
        """Whether it has ended without a word, since a process that it started keeps its pipe open."""
        if self._process.poll() is None:
            return False
        self._listener.join(GRACE_SECONDS)
        return self._listener.is_alive()

    def begin(self, spec: RunSpec) -> None:
        """Start a run; the worker must be idle."""
        self.spec, self.began, self.told = spec, time.monotonic(), None
        self.send(spec)

    def send(self, request: Any) -> None:
        """Ask for something."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it has died; its end is in the inbox
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()

    def last_words(self) -> tuple[str, str]:
        """How the process ended, and that with the end of what it had printed."""
        code = self._process.wait()
        cause = f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.Signals(-code).name})"
        output = Path(self._output).read_text(errors="replace")[-OUTPUT_KEPT:]
        reason = f"the worker process ended with {cause}"
        return reason, f"{reason}\n{output}".rstrip()

    def stop(self) -> None:
        """End the process: at its leisure when it is idle, at once when it is busy, and what it was doing is lost."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        if self.spec is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_SECONDS)
        with suppress(ProcessLookupError, PermissionError):  # all of them have ended
            os.killpg(self._process.pid, signal.SIGKILL) if os.name == "posix" else self._process.kill()
        self._process.wait()
        self._listener.join(GRACE_SECONDS)
        if self._process.stdout and not self._listener.is_alive():
            self._process.stdout.close()
        Path(self._output).unlink(missing_ok=True)


class Pool:
    """The workers of this machine.

    Args:
        places: how many runs are made at a time, for how long at most, and on which devices.
        told: is told how far the runs are.
    """

    def __init__(self, places: Places, told: Told | None = None) -> None:
        self._size, self._timeout, self._told = places.size, places.timeout, told
        self._devices = places.devices or ("",)
        self._workers: list[Worker] = []
        self._inbox: queue.Queue[tuple[Worker, Any]] = queue.Queue()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in self._workers:
            worker.stop()

    @property
    def keys(self) -> set[str]:
        """The runs under way."""
        return {worker.spec.key for worker in self._workers if worker.spec}

    @property
    def full(self) -> bool:
        """Whether nobody is idle."""
        return len(self.keys) == self._size

    def begin(self, spec: RunSpec) -> None:
        """Give a run to an idle worker on the device that has the fewest."""
        busy = [worker.device for worker in self._workers if worker.spec]
        device = min(self._devices, key=busy.count)
        idle = [worker for worker in self._workers if worker.spec is None and worker.device == device]
        if not idle:
            idle = [Worker(self._inbox, device)]
            self._workers += idle
        idle[0].begin(spec)

    def ended(self, patience: float) -> list[tuple[RunSpec, Outcome]]:
        """The runs that ended, after waiting ``patience`` seconds at most for the first word of a worker.

        Raises:
            LabError: if a worker refuses a problem.
        """
        words = []
        with suppress(queue.Empty):
            words.append(self._inbox.get(timeout=patience))
            while True:
                words.append(self._inbox.get_nowait())
        outcomes = [found for worker, word in words if worker in self._workers for found in self._take(worker, word)]
        for worker in [each for each in self._workers if each.has_left_others()]:
            outcomes += self._take(worker, _Gone())
        return outcomes + [found for worker in self._overdue() for found in self._ended_late(worker)]

    def _take(self, worker: Worker, word: Any) -> list[tuple[RunSpec, Outcome]]:
        spec = worker.spec
        if isinstance(word, Refused):
            raise LabError(word.line)
        if isinstance(word, Progress) and spec is not None:
            if worker.told is None:
                worker.began = time.monotonic()  # now that the problem is loaded
            worker.told = word
            if self._told:
                self._told(spec, word.step, word.steps)
        elif isinstance(word, Worn) and spec is not None:
            worker.spec = None
            worker.stop()
            self._workers.remove(worker)
            self.begin(spec)
        elif isinstance(word, _Gone):
            return self._crashed(worker)
        elif isinstance(word, Outcome) and spec is not None:
            worker.spec = None
            return [(spec, word)]
        return []

    def _overdue(self) -> list[Worker]:
        if self._timeout is None:
            return []
        now, busy = time.monotonic(), [worker for worker in self._workers if worker.spec]
        return [w for w in busy if now - w.began > self._timeout + (LOADING_SECONDS if w.told is None else 0)]

    def _ended_late(self, worker: Worker) -> list[tuple[RunSpec, Outcome]]:
        assert self._timeout is not None
        return self._replace(worker, late(self._timeout, worker.told))

    def _crashed(self, worker: Worker) -> list[tuple[RunSpec, Outcome]]:
        reason, error = worker.last_words()
        step = worker.told.step if worker.told else 0
        return self._replace(worker, Outcome("crashed", detail={"error": error, "reason": reason, "step": step}))

    def _replace(self, worker: Worker, outcome: Outcome) -> list[tuple[RunSpec, Outcome]]:
        """Let go of a worker; what its run came to, if it had one."""
        spec = worker.spec
        worker.stop()
        self._workers.remove(worker)
        return [] if spec is None else [(spec, outcome)]


def late(timeout: float, told: Progress | None) -> Outcome:
    """What a run came to that took too long, and was last heard of there."""
    step, steps = (told.step, told.steps) if told else (0, None)
    place = f"step {step}" if steps is None else f"step {step} of {steps}"
    reason = f"it took longer than {timeout:g} s; it was last heard of at {place}"
    return Outcome("timeout", detail={"error": reason, "reason": reason, "step": step})


def ask(request: Any, device: str = "", patience: float = math.inf) -> Any:
    """What a worker of its own answers to a request.

    Args:
        request: what a worker understands.
        device: where the worker is; empty for one that sees all devices.
        patience: seconds.

    Raises:
        LabError: if it refuses, dies, or loses patience.
    """
    inbox: queue.Queue[tuple[Worker, Any]] = queue.Queue()
    worker, until = Worker(inbox, device), time.monotonic() + patience
    try:
        worker.send(request)
        while True:
            if time.monotonic() > until:
                raise LabError(f"a worker had no answer after {patience:g} s")
            with suppress(queue.Empty):
                _, answer = inbox.get(timeout=1.0)
                break
        if isinstance(answer, _Gone):
            raise LabError(worker.last_words()[1])
        if isinstance(answer, Refused):
            raise BadInput(answer.line)
        return answer
    finally:
        worker.stop()
