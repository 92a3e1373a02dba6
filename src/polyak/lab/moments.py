"""Short runs of several methods in turn, which a worker makes for their times alone; see :mod:`polyak.lab.timing`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from polyak.lab.contenders import found_again
from polyak.lab.described import Timed
from polyak.lab.loops import Run
from polyak.lab.problem import Problem
from polyak.lab.spec import RunSpec
from polyak.lab.statistics import median
from polyak.lab.train import run

ROUNDS = 5
LEAST_STEPS, MOST_STEPS, MOST_SECONDS = 5, 50, 2.0  # of a run
TIMES = ("step_ms", "optimizer_ms")

Times = dict[str, float | None]


@dataclass(frozen=True)
class TimingRequest:
    """What a worker is asked to time.

    Args:
        problems: for each problem a run of every method.
        seconds: for all of it.
    """

    problems: tuple[tuple[RunSpec, ...], ...]
    seconds: float


def time_here(request: TimingRequest, problem_of: Callable[[RunSpec], Problem]) -> list[Timed | None]:
    """Measure in this process; None for a problem for which there was no time, or whose runs fail.

    Args:
        request: what is measured.
        problem_of: gives the problem of a run.
    """
    seconds = request.seconds / len(request.problems)
    return [_timed(problem_of(specs[0]), specs, seconds) for specs in request.problems]


def _timed(problem: Problem, specs: Sequence[RunSpec], seconds: float) -> Timed | None:
    begin = time.monotonic()
    rounds = in_turn(specs, lambda spec: _moment(problem, spec), lambda: time.monotonic() - begin, seconds)
    if not rounds:
        return None
    methods = {
        spec.method: {"setting": spec.setting, **{name: _middle([each[i][name] for each in rounds]) for name in TIMES}}
        for i, spec in enumerate(specs)
    }
    return Timed(len(rounds), methods)


def in_turn(
    specs: Sequence[RunSpec], moment: Callable[[RunSpec], Times | None], clock: Callable[[], float], seconds: float
) -> list[list[Times]]:
    """The times of each run in whole rounds, as many as there is time for; none if a run fails.

    Args:
        specs: the runs.
        moment: runs one for a moment.
        clock: the seconds so far.
        seconds: the time that there is.
    """
    rounds: list[list[Times]] = []
    while len(rounds) < ROUNDS and clock() * (len(rounds) + 1) <= seconds * max(1, len(rounds)):
        times: list[Times] = []
        for spec in specs:
            found = moment(spec) if clock() <= seconds else None
            if found is None:
                return rounds
            times.append(found)
        rounds.append(times)
    return rounds


def _moment(problem: Problem, spec: RunSpec) -> Times | None:
    begin = time.perf_counter()

    def halt(under_way: Run) -> bool:
        count, seconds = len(under_way.step_seconds), time.perf_counter() - begin
        return count >= MOST_STEPS or (count >= LEAST_STEPS and seconds > MOST_SECONDS)

    method = found_again(spec.contender or spec.method)
    outcome = run(Run(problem, method, spec.setting, spec.steps, halt=halt), spec.seed, "validation")
    times = outcome.detail.get("timing", {})
    return {name: times[name] for name in TIMES} if times.get("step_ms") is not None else None


def _middle(times: Sequence[float | None]) -> float | None:
    known = [each for each in times if each is not None]
    return median(known) if known else None
