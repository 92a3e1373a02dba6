"""A worker: a plain process that makes one run after another, ``python -c "... polyak.lab.worker.main()"``.

It reads pickled requests from its standard input and writes pickled answers to what was its standard output. As in
any Python process a problem may start processes of its own, and a script needs no ``__main__`` guard. A worker ends
when its input does, so it does not outlive the process that started it, however that ends.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from polyak.lab.check import LookRequest, look_here
from polyak.lab.errors import LabError
from polyak.lab.fingerprint import fingerprint
from polyak.lab.loops import Outcome, StopRun, why
from polyak.lab.moments import TimingRequest, time_here
from polyak.lab.pool import Progress, Refused, Worn
from polyak.lab.problems import LoadedProblem, load
from polyak.lab.spec import RunSpec
from polyak.lab.train import make

TELL_SECONDS = 1.0  # between two words about how far a run is

Request = RunSpec | LookRequest | TimingRequest


def main() -> None:
    """The life of a worker."""
    # The first call of any torch optimizer imports torch._dynamo; no method is to be charged with those seconds.
    import torch
    import torch._dynamo

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that leads
    requests, answers = _take_pipes()
    torch.set_num_threads(1)
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, waiting), daemon=True).start()
    room = Room()
    while True:
        room.answer(waiting.get(), lambda answer: _send(answers, answer))


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep the pipes to the leader; what a problem prints goes where errors go, and there is nothing for it to read."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a crash is to lose no word
    return requests, answers


def _receive(requests: BinaryIO, waiting: queue.SimpleQueue[Any]) -> None:
    while True:
        try:
            waiting.put(pickle.load(requests))
        except EOFError:
            os._exit(0)  # whoever would read the answer is gone


def _send(answers: BinaryIO, answer: Any) -> None:
    pickle.dump(answer, answers)
    answers.flush()


@dataclass
class _Known:
    loaded: LoadedProblem
    mark: str | None = None
    runs: int = 0


class Room:
    """The problems that this process has loaded, and what it does with them."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], _Known] = {}

    def answer(self, request: Request, send: Callable[[Any], None]) -> None:
        """Do what is asked, and send how it goes and what it came to."""
        try:
            send(self._answered(request, send))
        except LabError as error:
            send(Refused(str(error)))

    def _answered(self, request: Request, send: Callable[[Any], None]) -> Any:
        if isinstance(request, TimingRequest):
            return time_here(request, lambda spec: self._load(spec).loaded.problem)
        return self._look(request) if isinstance(request, LookRequest) else self._run(request, send)

    def _load(self, request: RunSpec | LookRequest) -> _Known:
        place = request.reference, request.device
        if place not in self._known:
            loaded = load(request.reference)
            self._known[place] = _Known(replace(loaded, problem=loaded.problem.on(request.device)))
        return self._known[place]

    def _look(self, request: LookRequest) -> Any:
        return look_here(self._load(request).loaded.problem, request.firsts, request.steps)

    def _run(self, spec: RunSpec, send: Callable[[Any], None]) -> Outcome | Worn:
        known = self._load(spec)
        if known.loaded.source(spec.split) != spec.source:
            raise LabError(f"{spec.reference} changed after the comparison had begun; start it again")
        if spec.fingerprint:
            self._compare(known, spec)
            if known.runs == 1 and _has_changed(known):
                return Worn()
        known.runs += 1
        begin = [0.0]

        def progress(step: int) -> None:
            if time.monotonic() - begin[0] > TELL_SECONDS:
                begin[0] = time.monotonic()
                send(Progress(step, spec.steps))

        progress(0)
        return make(known.loaded.problem, spec, progress)

    def _compare(self, known: _Known, spec: RunSpec) -> None:
        """Refuse a problem that is not the same here as in the process that planned the comparison."""
        if known.mark is None:
            try:
                known.mark = fingerprint(known.loaded.problem)
            except (Exception, SystemExit, StopRun) as error:
                raise LabError(f"{spec.problem} fails: {why(error)}") from error
        if known.mark != spec.fingerprint:
            raise LabError(
                f"{spec.problem} is not the same in every process: its data, splits, initial weights or first losses "
                "differ; draw all of them with fixed seeds, and list files in sorted order"
            )


def _has_changed(known: _Known) -> bool:
    """Whether the first run left something behind that other runs would find; it costs the beginning of a run."""
    try:
        return fingerprint(known.loaded.problem) != known.mark
    except (Exception, SystemExit):
        return True
