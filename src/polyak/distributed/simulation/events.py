"""A simulated clock: workers of given speeds finish one after the other, and the server hears them in that order."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from polyak.declare import COUNT, NON_NEGATIVE, POSITIVE, Hyper, Interval, whole
from polyak.distributed.simulation.server import Server
from polyak.distributed.simulation.shards import Shards

WAIT = Interval(0.0, math.inf)


def local_steps(speeds: Sequence[float], most: int, least: int = 5) -> list[int]:
    """DyLU (arXiv:2401.09135): local steps with which workers of several speeds take about the same time.

    ::

        H_i = max(least, floor(most * v_i / max_j v_j))

    Args:
        speeds: steps a second, above 0.
        most: those of the fastest, at least 1.
        least: at least 1.

    Raises:
        TypeError: counts that are no integers.
        ValueError: no speeds, or a number that is not allowed.
    """
    whole("most", most, "local_steps", COUNT)
    whole("least", least, "local_steps", COUNT)
    if not speeds:
        raise ValueError("local_steps: speeds must be one number or more, got none")
    for v in speeds:
        Hyper("speeds", 1.0, POSITIVE).check(v, "local_steps")
    # what rounding takes from a whole number is given back
    return [max(least, math.floor(most * v / max(speeds) + 1e-9)) for v in speeds]


@dataclass(frozen=True)
class Job:
    """What a worker does between two meetings with the server.

    ``weights`` are the server's as they were when it started, not to be written; ``rates`` those of its shard, one a
    step, empty without shards; ``memory`` is the worker's own for the whole run, such as its inner optimizer's state,
    and is saved with the simulation.
    """

    worker: int
    weights: list[Tensor]
    steps: int
    shard: int | None
    rates: list[float]
    memory: dict[str, Any]


class Arrival(NamedTuple):
    """What came of a worker's local steps: when, from how far back, and whether it entered the weights."""

    time: float
    worker: int
    staleness: int
    steps: int
    outcome: str


class _Pending(NamedTuple):
    finish: float
    worker: int
    version: int
    steps: int
    shard: int | None


class Simulation:
    """Workers on a simulated clock.

    ::

        worker i starts at s from the weights of then and finishes at  s + H_i / v_i
        the first to finish, and those that do within max_wait of it, are heard in that order;
        then they start again from the newest weights

    With ``max_wait=math.inf`` the server waits for all, which with ``Server(rule="mean")`` is the synchronous method.
    A worker's steps are computed when it is heard, so that one that dies costs nothing. ::

        server = Server(DelayedNesterov(params, buffer_size=4), num_workers=4)
        simulation = Simulation(server, train, speeds=[1.0, 1.2, 2.0, 4.0], steps=20)
        simulation.run(3000)

    Args:
        server: what hears them.
        train: ``train(job) -> weights``, the weights after ``job.steps`` local steps from ``job.weights``; see
            :class:`Job`. It must depend on the job and its memory alone, for a resumed run to be the same.
        speeds: steps a second of each worker, above 0.
        steps: local steps of every worker, H, or of each, see :func:`local_steps`; at least 1.
        max_wait: the grace period, in seconds.
        shards: the shares of data; None: workers have no shards.
        rescale_by_steps: multiply a delta by ``max_j H_j / H_i``; the paper does not.

    Raises:
        TypeError: counts that are no integers.
        ValueError: a number that is not allowed, or as many steps as there are not workers.
    """

    def __init__(
        self, server: Server, train: Callable[[Job], Sequence[Tensor]], speeds: Sequence[float],
        steps: int | Sequence[int] = 50, *, max_wait: float = 0.0, shards: Shards | None = None,
        rescale_by_steps: bool = False,
    ) -> None:  # fmt: skip
        Hyper("max_wait", 0.0, WAIT).check(max_wait, "Simulation")
        each = [steps] * len(speeds) if isinstance(steps, int) else list(steps)
        if len(each) != len(speeds) or not each:
            raise ValueError(f"Simulation: steps must be as many as the {len(speeds)} speeds, got {len(each)}")
        self.server, self.train, self.shards = server, train, shards
        self.max_wait, self.rescale_by_steps = max_wait, rescale_by_steps
        self.time, self.local_steps = 0.0, 0
        self._workers: dict[int, tuple[float, int]] = {}
        self._memories: dict[int, dict[str, Any]] = {}
        self._queue: list[_Pending] = []
        self._snapshots: dict[int, list[Tensor]] = {}
        for worker, (speed, h) in enumerate(zip(speeds, each, strict=True)):
            self.join(worker, speed, h)

    @property
    def workers(self) -> list[int]:
        """Those that are there."""
        return sorted(self._workers)

    def join(self, worker: int, speed: float, steps: int) -> None:
        """A worker starts from the weights of now.

        Raises:
            ValueError: it is there already, or a number is not allowed.
        """
        Hyper("speeds", 1.0, POSITIVE).check(speed, "Simulation")
        whole("steps", steps, "Simulation", COUNT)
        whole("worker", worker, "Simulation", NON_NEGATIVE)
        if worker in self._workers:
            raise ValueError(f"Simulation: worker {worker} is there already")
        self._workers[worker] = (float(speed), steps)
        self._memories.setdefault(worker, {})
        self._start(worker)

    def die(self, worker: int) -> None:
        """A worker ends in the middle: what it was doing is lost, and its shard returns.

        Raises:
            ValueError: there is no such worker.
        """
        if worker not in self._workers:
            raise ValueError(f"Simulation: there is no worker {worker}; there are {self.workers}")
        (lost,) = (pending for pending in self._queue if pending.worker == worker)
        self._queue.remove(lost)
        heapq.heapify(self._queue)
        if self.shards is not None and lost.shard is not None:
            self.shards.give_back(lost.shard)
        del self._workers[worker]
        self._tidy()

    def _start(self, worker: int) -> None:
        speed, h = self._workers[worker]
        shard = None if self.shards is None else self.shards.take()
        version = self.server.arrivals
        if version not in self._snapshots:
            self._snapshots[version] = self.server.weights()
        heapq.heappush(self._queue, _Pending(self.time + h / speed, worker, version, h, shard))

    def _tidy(self) -> None:
        kept = {pending.version for pending in self._queue}
        self._snapshots = {version: own for version, own in self._snapshots.items() if version in kept}

    def advance(self) -> list[Arrival]:
        """The next arrivals: the first and those within the grace period.

        Where ``train`` raises, workers and shards are as they were before, so that it can be tried again; what it has
        written in a worker's memory stays.

        Raises:
            RuntimeError: no worker is left.
            ValueError: what ``train`` returned has other shapes.
        """
        if not self._queue:
            raise RuntimeError("Simulation: no worker is left")
        heard = [heapq.heappop(self._queue)]
        until = heard[0].finish + self.max_wait
        while self._queue and self._queue[0].finish <= until:
            heard.append(heapq.heappop(self._queue))
        before, steps = self.server.arrivals, None if self.shards is None else list(self.shards.steps)
        try:
            deltas = [self._delta(pending) for pending in heard]
            outcomes = self.server.receive_all(deltas, [pending.version for pending in heard])
        except BaseException:
            for pending in heard:
                heapq.heappush(self._queue, pending)
            if self.shards is not None and steps is not None:
                self.shards.steps = steps
            raise
        self.time = heard[-1].finish if math.isinf(until) else until
        found = []
        for pending, outcome in zip(heard, outcomes, strict=True):
            found.append(Arrival(pending.finish, pending.worker, before - pending.version, pending.steps, outcome))
            before += outcome == "applied" and self.server.rule != "mean"
            self.local_steps += pending.steps
        for pending in heard:
            self._start(pending.worker)
        self._tidy()
        return found

    def run(self, local_steps: int) -> list[Arrival]:
        """Go on until all workers together have made so many local steps since the start."""
        found: list[Arrival] = []
        while self.local_steps < local_steps:
            found += self.advance()
        return found

    def _delta(self, pending: _Pending) -> list[Tensor]:
        start = self._snapshots[pending.version]
        rates: list[float] = []
        if self.shards is not None and pending.shard is not None:
            rates = self.shards.rates(pending.shard, pending.steps)
            self.shards.done(pending.shard, pending.steps)
        job = Job(pending.worker, start, pending.steps, pending.shard, rates, self._memories[pending.worker])
        end = list(self.train(job))
        scale = max(h for _, h in self._workers.values()) / pending.steps if self.rescale_by_steps else 1.0
        shapes, own = [tuple(e.shape) for e in end], [tuple(s.shape) for s in start]
        if shapes != own:
            raise ValueError(f"Simulation: train must return weights of the shapes {own}, got {shapes}")
        return [(s - e.detach()) * scale for s, e in zip(start, end, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on, with periods and local steps that are open."""
        return {
            "server": self.server.state_dict(), "time": self.time, "local_steps": self.local_steps,
            "workers": dict(self._workers), "memories": deepcopy(self._memories),
            "queue": [tuple(pending) for pending in sorted(self._queue)],
            "snapshots": {version: [w.clone() for w in own] for version, own in self._snapshots.items()},
            "shards": None if self.shards is None else self.shards.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on as the run that saved it, with its workers.

        Raises:
            ValueError: shards where there were none or the other way, or what server and shards refuse; nothing has
                changed then.
        """
        if (self.shards is None) != (state_dict["shards"] is None):
            raise ValueError("Simulation: only one of the state_dict and this simulation has shards")
        if self.shards is not None:
            self.shards.check(state_dict["shards"])
        self.server.load_state_dict(state_dict["server"])
        if self.shards is not None:
            self.shards.load_state_dict(state_dict["shards"])
        self.time, self.local_steps = state_dict["time"], state_dict["local_steps"]
        self._workers = {int(worker): tuple(own) for worker, own in state_dict["workers"].items()}
        self._memories = deepcopy(state_dict["memories"])
        self._queue = [_Pending(*pending) for pending in state_dict["queue"]]
        self._snapshots = {version: [w.clone() for w in own] for version, own in state_dict["snapshots"].items()}
