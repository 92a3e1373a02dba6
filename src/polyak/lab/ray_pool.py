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
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from polyak.lab.errors import BadInput, LabError, require
from polyak.lab.loops import Outcome
from polyak.lab.places import Places
from polyak.lab.pool import Progress, Refused, Told, late
from polyak.lab.spec import RunSpec, versions
from polyak.lab.worker import Room

RETRIES = 3
ANSWER_SECONDS = 15.0
PROBE = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"


class _Board:
    """An actor on which tasks write how far they are."""

    def __init__(self) -> None:
        self._words: dict[str, tuple[str, Progress]] = {}

    def tell(self, key: str, who: str, word: Progress) -> None:
        """Write how far the run with a key is in a process."""
        self._words[key] = who, word

    def take(self) -> dict[str, tuple[str, Progress]]:
        """What is new."""
        words, self._words = self._words, {}
        return words


@dataclass
class _Task:
    spec: RunSpec
    who: str = ""  # the process that is at it
    began: float | None = None  # when that was first heard of: before, the run waits for its turn or loads the problem
    told: Progress | None = None


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
        words = self._ray.get(self._board.take.remote())
        for task in self._tasks.values():
            if task.spec.key not in words:
                continue
            who, word = words[task.spec.key]
            if who != task.who:  # Ray makes it again
                task.who, task.began = who, time.monotonic()
            task.told = word
            if self._told:
                self._told(task.spec, word.step, word.steps)

    def _outcome(self, task: Any) -> Outcome:
        told = self._tasks.pop(task).told
        try:
            answer = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            raise LabError(f"a Ray node cannot make runs: {_last_line(error)}") from error
        except self._ray.exceptions.RayError as error:
            reason = f"the Ray task ended with {type(error).__name__}, {RETRIES + 1} times"
            lost = {"error": f"{reason}\n{error}", "reason": reason, "step": told.step if told else 0}
            return Outcome("crashed", detail=lost)
        if isinstance(answer, Refused):
            raise LabError(answer.line)
        assert isinstance(answer, Outcome)
        return answer

    def _overdue(self) -> list[tuple[RunSpec, Outcome]]:
        found, now = [], time.monotonic()
        for key, task in list(self._tasks.items()):
            if self._timeout is not None and task.began is not None and now - task.began > self._timeout:
                self._ray.cancel(key, force=True)
                found.append((self._tasks.pop(key).spec, late(self._timeout, task.told)))
        return found


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
    who, answers = f"{platform.node()} {os.getpid()}", []

    def send(word: Any) -> None:
        if isinstance(word, Progress):
            board.tell.remote(request.key, who, word)
        else:
            answers.append(word)

    _room.answer(request, send)
    return answers[0]
