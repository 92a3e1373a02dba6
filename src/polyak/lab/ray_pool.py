"""Runs that are made as tasks of a Ray cluster.

Ray itself makes a task again whose process or node has died; a run that dies each time has crashed. The nodes need
polyak, Ray and Python in the versions of the process that leads, and problem files at the same paths: Python's path
and polyak's own settings travel with the tasks, files do not.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from polyak.lab.errors import BadInput, LabError, require
from polyak.lab.loops import Outcome
from polyak.lab.places import Places
from polyak.lab.pool import LOADING_SECONDS, Progress, Refused, Told, Worn, late
from polyak.lab.spec import RunSpec, versions
from polyak.lab.worker import Room

RETRIES = 3
ANSWER_SECONDS = 15.0
BEAT_SECONDS = 1.0
PROBE = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"


@dataclass(frozen=True)
class _Beat:
    """How far a run is, and after how many seconds in its present process."""

    seconds: float
    progress: Progress


class _Board:
    """An actor on which tasks write how far they are."""

    def __init__(self) -> None:
        self._beats: dict[str, _Beat] = {}

    def tell(self, key: str, beat: _Beat) -> None:
        """Write down how far the run with a key is."""
        self._beats[key] = beat

    def take(self) -> dict[str, _Beat]:
        """What is new."""
        beats, self._beats = self._beats, {}
        return beats


@dataclass
class _Task:
    spec: RunSpec
    heard: float | None = None  # when there was a word of it; before, it waits for its turn or loads the problem
    beat: _Beat | None = None


class RayPool:
    """As many tasks at a time as there are workers; to :func:`polyak.lab.runner.make_runs` it is a pool.

    Args:
        places: which cluster; how many runs are made at a time, by default one for each of its cores, or of its GPUs
            where the device is "cuda"; and for how long at most.
        told: is told how far the runs are.

    Raises:
        BadInput: no cluster answers.
    """

    def __init__(self, places: Places, told: Told | None = None) -> None:
        self._ray = require("ray", "ray")
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            _connect(self._ray, places.address or "auto")
        self._timeout, self._told = places.timeout, told
        gpus = int(places.first == "cuda")
        self._size = places.workers or int(self._ray.cluster_resources().get("GPU" if gpus else "CPU", 1))
        room = {"env_vars": _environment()}
        self._board = self._ray.remote(num_cpus=0, runtime_env=room)(_Board).remote()
        self._answer = self._ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES, runtime_env=room)(_answer)
        self._tasks: dict[Any, _Task] = {}

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        self._ray.kill(self._board)
        if self._is_ours:
            self._ray.shutdown()

    @property
    def keys(self) -> set[str]:
        """The runs under way."""
        return {task.spec.key for task in self._tasks.values()}

    @property
    def full(self) -> bool:
        """Whether there are as many tasks as there may be."""
        return len(self._tasks) >= self._size

    def begin(self, spec: RunSpec) -> None:
        """Hand a run to the cluster."""
        self._tasks[self._answer.remote(spec, versions(), self._board)] = _Task(spec)

    def ended(self, patience: float) -> list[tuple[RunSpec, Outcome]]:
        """The runs that ended, after waiting ``patience`` seconds at most for the first one.

        Raises:
            LabError: if a node refuses a problem, or cannot make runs at all.
        """
        if not self._tasks:
            time.sleep(patience)
            return []
        self._ray.wait(list(self._tasks), timeout=patience)
        ready, _ = self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        self._listen()
        return [(self._tasks[task].spec, self._outcome(task)) for task in ready] + self._overdue()

    def ask(self, request: Any, patience: float) -> Any:
        """What a node answers to a request, within so many seconds.

        Raises:
            LabError: if it refuses, dies, or has no answer in time.
        """
        try:
            answer = self._ray.get(self._answer.remote(request, versions(), self._board), timeout=patience)
        except self._ray.exceptions.RayError as error:
            raise LabError(f"a Ray node had no answer: {_last_line(error)}") from error
        if isinstance(answer, Refused):
            raise LabError(answer.line)
        return answer

    def _listen(self) -> None:
        beats = self._ray.get(self._board.take.remote())
        for task in self._tasks.values():
            if (beat := beats.get(task.spec.key)) is None:
                continue
            task.heard, task.beat = time.monotonic(), beat
            if self._told:
                self._told(task.spec, beat.progress.step, beat.progress.steps)

    def _outcome(self, task: Any) -> Outcome:
        beat = self._tasks.pop(task).beat
        try:
            answer = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            raise LabError(f"a Ray node cannot make runs: {_last_line(error)}") from error
        except self._ray.exceptions.RayError as error:
            reason = f"the Ray task ended with {type(error).__name__}, {RETRIES + 1} times"
            lost = {"error": f"{reason}\n{error}", "reason": reason, "step": beat.progress.step if beat else 0}
            return Outcome("crashed", detail=lost)
        if isinstance(answer, Refused):
            raise LabError(answer.line)
        assert isinstance(answer, Outcome)
        return answer

    def _overdue(self) -> list[tuple[RunSpec, Outcome]]:
        if self._timeout is None:
            return []
        late_ones = [(key, task) for key, task in self._tasks.items() if _is_late(task, self._timeout)]
        for key, _ in late_ones:
            self._ray.cancel(key, force=True)
            del self._tasks[key]
        return [(task.spec, late(self._timeout, task.beat.progress if task.beat else None)) for _, task in late_ones]


def _is_late(task: _Task, timeout: float) -> bool:
    """Whether a run takes too long by its own clock, since Ray may be making it again; or is silent for too long."""
    if task.beat is None or task.heard is None:
        return False
    return task.beat.seconds > timeout or time.monotonic() - task.heard > timeout + LOADING_SECONDS


def _connect(ray: Any, address: str) -> None:
    """Become a driver of the cluster; Ray itself would wait for minutes for one that is not there, and then exit."""
    way_out = "`ray start --head` starts a cluster and says its address"
    if address != "auto":
        try:
            probe = [sys.executable, "-c", PROBE, address]
            subprocess.run(probe, check=True, capture_output=True, text=True, timeout=ANSWER_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise BadInput(f"no Ray cluster answers at {address!r} within {ANSWER_SECONDS:g} s; {way_out}") from error
        except subprocess.CalledProcessError as error:
            raise BadInput(f"cannot join the Ray cluster at {address!r}: {_last_line(error.stderr)}") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        raise BadInput(f"no Ray cluster runs on this machine; {way_out}") from error


def _last_line(error: object) -> str:
    return (str(error).strip().splitlines() or ["?"])[-1]


def _environment() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name.startswith("POLYAK_")}
    return {**ours, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


_room = Room()


def _answer(request: Any, used: dict[str, str], board: Any) -> Any:
    """What a node answers to a request of a process that has these versions."""
    import torch._dynamo  # torch's first optimizer imports it; no method is to be charged with those seconds

    other = [f"{name} {there} instead of {used[name]}" for name, there in versions().items() if there != used[name]]
    if other:
        return Refused(f"the Ray node {platform.node()} has {', '.join(other)}; install there what is installed here")
    torch.set_num_threads(1)
    answers: list[Any] = []
    with _Pulse(board, request) as pulse:
        _room.answer(request, lambda word: pulse.take(word) if isinstance(word, Progress) else answers.append(word))
    if isinstance(answers[0], Worn):
        os._exit(0)  # Ray makes the run again, in a process that has made none
    return answers[0]


class _Pulse:
    """Writes on the board once a second how far a run is, also while that says nothing."""

    def __init__(self, board: Any, request: Any) -> None:
        self._board, self._request = board, request
        self._began, self._word = 0.0, Progress(0, None)
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> _Pulse:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._has_ended.set()

    def take(self, word: Progress) -> None:
        """Take how far the run is; with the first word it begins."""
        self._word = word
        if not self._began:
            self._began = time.monotonic()
            self._thread.start()

    def _beat(self) -> None:
        while not self._has_ended.wait(BEAT_SECONDS):
            beat = _Beat(time.monotonic() - self._began, self._word)
            self._board.tell.remote(self._request.key, beat)
