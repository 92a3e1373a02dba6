"""The look before the journey: does a problem run at all, how long will it take, and how does it behave.

A declared problem is looked at untrained: two losses, both evaluations, then a few steps with each method. A train
function is run on the test split for :data:`LOOK_SECONDS` at most, and with each further method for a few steps. What
the test split says is thrown away here, and never leaves the process that looked.

It also finds the problem's fingerprint (:mod:`polyak.lab.fingerprint`), and what a run leaves behind: in the process,
where the fingerprint is another one afterwards, and in the working folder.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polyak.lab import search
from polyak.lab.contenders import Contender, found_again
from polyak.lab.errors import BadInput, LabError
from polyak.lab.fingerprint import SEED, fingerprint
from polyak.lab.loops import Outcome, Run, StopRun, why
from polyak.lab.places import kind
from polyak.lab.pool import ask
from polyak.lab.problem import Problem
from polyak.lab.problems import LoadedProblem
from polyak.lab.seeding import seed_everything, seeded
from polyak.lab.train import EVALUATIONS, built, evaluated, run

First = tuple[str, dict[str, Any]]  # where a method is found, and the hyperparameters of its first trial

LOOK_STEPS = 3  # with each method; the first ones may compile
LOOK_SECONDS = 20.0
SHOWN_FILES = 3
MANY_FILES = 1000  # in a folder, among which nobody looks for new ones


@dataclass(frozen=True)
class Look:
    """What a look found.

    Args:
        fingerprint: how the problem behaves.
        seconds_per_step: of the slowest method looked at.
        seconds_per_evaluation: of the validation metric; None where that cannot be told from training.
        seconds_per_run: of a run judged on validation; None where the run's length is not known.
        whole: whether the test split was evaluated; a train function that takes too long is left before.
        keeps_state: whether the problem behaves otherwise after a run than before, in the same process.
        leaves: new files in the working folder.
    """

    fingerprint: str
    seconds_per_step: float
    seconds_per_evaluation: float | None
    seconds_per_run: float | None
    whole: bool
    keeps_state: bool = False
    leaves: tuple[str, ...] = ()

    def warnings(self, is_here: bool) -> list[str]:
        """What a user should hear of; ``is_here``: whether all runs are made in this process."""
        found = []
        if self.keeps_state:
            what = (
                "a run changes something outside it that the next one finds, such as a list or a generator of a module"
            )
            alone = "" if is_here else "each run gets a process of its own, which takes longer; "
            cure = "make it anew in every run" + ", or give the function that returns the Problem" * is_here
            found.append(f"{what}; {alone}{cure}")
        if self.leaves:
            more = ", ..." if len(self.leaves) > SHOWN_FILES else ""
            what = f"a run leaves {', '.join(self.leaves[:SHOWN_FILES])}{more} in the working folder"
            found.append(f"{what}, where other runs overwrite it; write to report.folder, which is each run's own")
        return found


def firsts(contenders: Iterable[Contender]) -> tuple[First, ...]:
    """Where each method is found, with the hyperparameters of a first trial."""
    return tuple((c.reference, {**c.fixed, **search.settings(c.space, c.defaults, 1)[0]}) for c in contenders)


def look(loaded: LoadedProblem, contenders: Iterable[Contender], steps: int | None = None, device: str = "") -> Look:
    """Look at a problem, in a process of its own unless only this one knows it.

    Args:
        loaded: the problem; give it the fingerprint that is found: ``replace(loaded, fingerprint=look.fingerprint)``.
        contenders: the methods to be compared.
        steps: how many steps a run is to take, where that is not the problem's own number.
        device: what to look at it on, such as ``"cuda:0"``; empty leaves that to the problem.

    Raises:
        BadInput: where the problem does not run; its own error in one line.
    """
    request = LookRequest(loaded.reference, firsts(contenders), loaded.problem.run_steps(steps), kind(device))
    if loaded.is_here:
        with seeded(SEED):
            return look_here(loaded.problem, request.firsts, request.steps)
    found: Look = ask(request, device)
    return found


@dataclass(frozen=True)
class LookRequest:
    """What a process is asked to look at."""

    reference: str
    firsts: tuple[First, ...]
    steps: int | None
    device: str = ""


def look_here(problem: Problem, firsts: Sequence[First], steps: int | None) -> Look:
    """Look at a problem in this process.

    Raises:
        BadInput: where it does not run.
    """
    before = _files()
    try:
        if problem.train is not None:
            found = _look_at_loop(problem, firsts, steps)
        else:
            assert steps is not None
            found = _look_at_parts(problem, firsts, steps)
        keeps_state = fingerprint(problem) != found.fingerprint
        return replace(found, keeps_state=keeps_state, leaves=tuple(sorted(_files() - before)))
    except LabError:
        raise
    except (Exception, SystemExit, StopRun) as error:
        raise BadInput(f"{problem.name} fails: {why(error)}") from error


def _files() -> set[str]:
    """What lies in the working folder and in the folders there."""
    folder = Path.cwd()
    there = _shown(folder)
    below = [each for place in there if place.is_dir() for each in _shown(place)]
    return {place.relative_to(folder).as_posix() for place in [*there, *below]}


def _shown(folder: Path) -> list[Path]:
    try:
        found = list(itertools.islice(folder.iterdir(), MANY_FILES + 1))
    except OSError:  # not ours to read
        return []
    return [p for p in found if p.name[0] not in "._"] if len(found) <= MANY_FILES else []


def _look_at_parts(problem: Problem, firsts: Sequence[First], steps: int) -> Look:
    mark = fingerprint(problem)
    seed_everything(SEED)
    model = built(problem, SEED)
    problem.judged(evaluated(problem, model, "test"))
    begin = time.perf_counter()
    evaluated(problem, model, "validation")
    evaluation = time.perf_counter() - begin
    short = replace(problem, evaluate_every=LOOK_STEPS)
    first = _begun(short, firsts[0], LOOK_STEPS)
    _try(first, "validation")
    step_seconds = max([_step_seconds(first), *_tried_beside(short, firsts[1:], steps)])
    every = problem.evaluate_every
    count = min(steps, EVALUATIONS) if every is None else math.ceil(steps / every)
    return Look(mark, step_seconds, evaluation, steps * step_seconds + count * evaluation, True)


def _look_at_loop(problem: Problem, firsts: Sequence[First], steps: int | None) -> Look:
    mark = fingerprint(problem)
    begin = time.perf_counter()
    first = _begun(problem, firsts[0], steps, lambda _: time.perf_counter() - begin > LOOK_SECONDS)
    whole = _try(first, "test").status != "stopped"
    seconds: float | None = time.perf_counter() - begin
    if seconds is not None and not whole:
        seconds = seconds / first.step * steps if steps is not None and first.step else None
    step_seconds = max([_step_seconds(first), *_tried_beside(problem, firsts[1:], steps)])
    return Look(mark, step_seconds, None, seconds, whole)


def _tried_beside(problem: Problem, firsts: Sequence[First], steps: int | None) -> Iterator[float]:
    """Take a few steps with each method; the seconds of each."""
    for first in firsts:
        tried = _begun(problem, first, steps, lambda r: len(r.step_seconds) >= LOOK_STEPS)
        _try(tried, "validation")
        yield _step_seconds(tried)


def _begun(problem: Problem, first: First, steps: int | None, halt: Callable[[Run], bool] | None = None) -> Run:
    reference, setting = first
    return Run(problem, found_again(reference), setting, steps, halt=halt)


def _step_seconds(tried: Run) -> float:
    return min(tried.step_seconds, default=0.0)  # the first steps may compile


def _try(tried: Run, split: str) -> Outcome:
    """Make a short run, and refuse the problem where it fails or where its metric is never a number."""
    outcome = run(tried, SEED, split)
    name = tried.problem.name
    if outcome.status == "failed":
        raise BadInput(f"{name} fails with {tried.method.name}: {outcome.detail['reason']}")
    values = [value for _, value in tried.validation] + ([] if tried.result is None else [tried.result])
    if values and all(map(math.isnan, values)):
        raise BadInput(f"{name}: {tried.problem.metric!r} is nan in every evaluation, though all weights are finite")
    return outcome
