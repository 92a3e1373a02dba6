"""The look before the journey: does a problem run at all, how long will it take, and how does it behave.

A declared problem is looked at untrained: two losses, both evaluations, then a few steps with each method. A train
function is run on the test split for :data:`LOOK_SECONDS` at most, and with each further method for a few steps. What
the test split says is thrown away here, and never leaves the process that looked.

The fingerprint is how a problem behaves before training: names, shapes and values of the initial weights, for a
declared problem also the first losses and the validation metric. It is taken in every process that makes runs; where
it differs, the processes do not have the same problem. It is a part of a run's key.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from polyak.lab import search
from polyak.lab.contenders import Contender, found_again
from polyak.lab.errors import BadInput, LabError
from polyak.lab.loops import Outcome, Run, StopRun, why
from polyak.lab.places import kind
from polyak.lab.pool import ask
from polyak.lab.problem import Problem
from polyak.lab.problems import LoadedProblem
from polyak.lab.seeding import seed_everything, seeded
from polyak.lab.train import EVALUATIONS, built, endless, evaluated, loss_of, run

First = tuple[str, dict[str, Any]]  # where a method is found, and the hyperparameters of its first trial

SEED = 0
LOOK_STEPS = 3  # with each method; the first ones may compile
LOOK_SECONDS = 20.0
DIGITS = 4  # of a figure in a fingerprint: machines and threads do not change them


@dataclass(frozen=True)
class Look:
    """What a look found.

    Args:
        fingerprint: how the problem behaves.
        seconds_per_step: of the slowest method looked at.
        seconds_per_evaluation: of the validation metric; None where that cannot be told from training.
        seconds_per_run: of a run judged on validation; None where the run's length is not known.
        whole: whether the test split was evaluated; a train function that takes too long is left before.
    """

    fingerprint: str
    seconds_per_step: float
    seconds_per_evaluation: float | None
    seconds_per_run: float | None
    whole: bool


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
    try:
        if problem.train is not None:
            return _look_at_loop(problem, firsts, steps)
        assert steps is not None
        return _look_at_parts(problem, firsts, steps)
    except LabError:
        raise
    except (Exception, SystemExit, StopRun) as error:
        raise BadInput(f"{problem.name} fails: {why(error)}") from error


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


def fingerprint(problem: Problem) -> str:
    """How a problem behaves before training, as a digest."""
    seed_everything(SEED)
    marks = _of_parts(problem) if problem.train is None else _of_loop(problem)
    return hashlib.sha256(repr(list(marks)).encode()).hexdigest()[:16]


def _of_parts(problem: Problem) -> Iterator[Any]:
    model = built(problem, SEED)
    yield from weights(model)
    model.train()
    batches = endless(problem, SEED)
    for _ in range(2):
        yield _rounded(loss_of(problem, model, next(batches)).item())
    metric, others, _ = problem.judged(evaluated(problem, model, "validation"))
    yield _rounded(metric)
    yield {name: _rounded(value) for name, value in others.items()}


def _of_loop(problem: Problem) -> list[Any]:
    found: list[Any] = []

    def make_optimizer(model_or_params: Any, **fixed: Any) -> Any:
        found.extend(weights(model_or_params))
        raise StopRun("only the beginning was asked for")

    def report(*_: Any, **__: Any) -> None:
        """Nothing is reported before there is an optimizer."""

    assert problem.train is not None
    with suppress(StopRun):
        problem.train(make_optimizer, SEED, report, "validation")
    return found


def weights(model_or_params: Any) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and values, the latter in :data:`DIGITS` digits, of what an optimizer is made for."""
    found: list[tuple[str, tuple[int, ...], str]] = []
    for name, p in _named(model_or_params):
        if isinstance(p, nn.parameter.UninitializedParameter):
            found.append((name, (), "uninitialized"))
            continue
        values = torch.view_as_real(p.detach()) if p.is_complex() else p.detach()
        values = values.double().flatten()
        place = torch.linspace(1, 2, len(values), dtype=values.dtype, device=values.device)
        # a sum of positive terms, so that it depends on every value and no rounding is blown up
        found.append((name, tuple(p.shape), _rounded(((values.abs() + values.relu()) * place).sum().item())))
    return found


def _named(model_or_params: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(model_or_params, nn.Module):
        yield from model_or_params.named_parameters()
        return
    entries: Iterable[Any] = [model_or_params] if isinstance(model_or_params, Tensor) else model_or_params
    for i, entry in enumerate(entries):
        if isinstance(entry, dict):
            yield from _named(entry["params"])
        else:
            yield entry if isinstance(entry, tuple) else (str(i), entry)


def _rounded(value: float) -> str:
    return f"{value:.{DIGITS}g}"
