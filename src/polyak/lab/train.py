"""One run: a problem trained with one method, one setting and one seed.

All methods are treated alike. A declared problem is trained by the loop below, which is a train function like any
other.
"""

from __future__ import annotations

import inspect
import itertools
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from polyak.lab.contenders import Contender, found_again
from polyak.lab.errors import BadInput, LabError
from polyak.lab.loops import Outcome, Run, StopRun, spread, why
from polyak.lab.machine import machine
from polyak.lab.problem import SCHEDULES, MakeOptimizer, Metrics, Problem, ReportProgress, Train
from polyak.lab.reporting import Report
from polyak.lab.seeding import seed_everything
from polyak.lab.spec import Bars, RunSpec

EVALUATIONS = 25  # of the validation metric, where the problem does not say how often
EPOCH_STRIDE = 1_000_003  # far enough that the epochs of one run never meet the seed of another


def make(problem: Problem, spec: RunSpec, progress: Callable[[int], None] | None = None) -> Outcome:
    """Make a run of a comparison.

    Raises:
        LabError: if the method is not what it was when the comparison was planned.
    """
    contender = found_again(spec.contender or spec.method)
    if spec.code and contender.code != spec.code:
        raise LabError(f"{spec.method} changed after the comparison had begun; start it again")
    return execute(problem, contender, spec.setting, spec.seed, spec.split, spec.steps, spec.bars, progress)


def execute(
    problem: Problem,
    method: Contender | str,
    setting: dict[str, Any],
    seed: int,
    split: str,
    steps: int | None,
    bars: Bars = (),
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Train and judge on ``split``; whatever the problem raises becomes a failed run with its traceback.

    Args:
        problem: what is trained.
        method: the method under test.
        setting: its hyperparameters.
        seed: of the model, the batches and the global generators.
        split: "validation" or "test".
        steps: how many steps the run takes.
        bars: steps with the validation metric that the run must hold there to go on.
        progress: is told how far the run is.
    """
    contender = found_again(method) if isinstance(method, str) else method
    return run(Run(problem, contender, setting, steps, bars, progress), seed, split)


def run(under_way: Run, seed: int, split: str) -> Outcome:
    """Train as far as the run goes, and judge."""
    seed_everything(seed)
    try:
        train = train_function(under_way.problem, under_way.steps)
        with Report(under_way.report) as report:
            returned = train(under_way.make_optimizer, seed, report, split)
        outcome = under_way.outcome(returned, split)
    except (Exception, SystemExit, StopRun) as error:
        if isinstance(error, StopRun) and under_way.is_over:
            outcome = under_way.stopped()
        else:
            reason = {"reason": why(error), "step": under_way.step}
            outcome = Outcome("failed", detail={"error": traceback.format_exc(), **reason})
    outcome.detail["machine"] = machine()
    return outcome


def train_function(problem: Problem, steps: int | None) -> Train:
    """The problem's own train function, or the loop over its parts."""
    if problem.train is not None:
        return problem.train
    assert steps is not None  # only a train function may leave it open
    return _Loop(problem, steps)


class _Loop:
    """A declared problem as a train function."""

    def __init__(self, problem: Problem, steps: int) -> None:
        self.problem, self.steps = problem, steps
        self.schedule = SCHEDULES[problem.schedule] if isinstance(problem.schedule, str) else problem.schedule
        every = problem.evaluate_every
        self.evaluate_at = set(spread(steps, EVALUATIONS) if every is None else range(every, steps, every)) | {steps}

    def __call__(self, make_optimizer: MakeOptimizer, seed: int, report: ReportProgress, split: str) -> Metrics:
        """Train and judge."""
        model = built(self.problem, seed)
        optimizer = make_optimizer(model)
        _refuse_closure(optimizer)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        step: Callable[..., Any] = optimizer.step
        takes_loss = "loss" in inspect.signature(step).parameters
        batches = endless(self.problem, seed)
        value: Metrics = None
        model.train()
        for now in range(1, self.steps + 1):
            loss = self._gradient(model, optimizer, batches)
            if self.problem.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.problem.clip)
            step(**({"loss": loss} if takes_loss else {}))
            schedule.step()
            report(now, loss=loss)
            if now in self.evaluate_at:
                value = evaluated(self.problem, model, "validation")
                report(now, value)
        return value if split == "validation" else evaluated(self.problem, model, split)

    def _factor(self, step: int) -> float:
        return self.schedule(min(step, self.steps - 1), self.steps)  # it is asked once more after the last step

    def _gradient(self, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[Any]) -> float:
        """Leave the mean gradient of a step's batches in the model, and return their mean loss."""
        total = 0.0
        for first in (True, *[False] * (self.problem.accumulation - 1)):
            loss = loss_of(self.problem, model, next(batches)) / self.problem.accumulation
            if first:
                optimizer.zero_grad()
            loss.backward()
            total += loss.item()
        return total


def _refuse_closure(optimizer: torch.optim.Optimizer) -> None:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise BadInput(
            f"{type(optimizer).__name__} needs a closure, which the loop over a problem's parts does not give to "
            "step(); bring a loop of your own: Problem(train=...)"
        )


def built(problem: Problem, seed: int) -> nn.Module:
    """The untrained model of a declared problem, on its device."""
    assert problem.build_model is not None
    model = problem.build_model(seed)
    return model if problem.device is None else model.to(problem.device)


def loss_of(problem: Problem, model: nn.Module, batch: Any) -> Tensor:
    """The loss of a declared problem on a batch."""
    assert problem.loss is not None
    return problem.loss(model, batch)


def evaluated(problem: Problem, model: nn.Module, split: str) -> Metrics:
    """What a declared problem's evaluation returns for a model that is in training."""
    assert problem.evaluate is not None
    model.eval()
    with torch.no_grad():
        metrics = problem.evaluate(model, split)
    model.train()
    return metrics


def endless(problem: Problem, seed: int) -> Iterator[Any]:
    """The batches of one epoch after another, each with a seed of its own, on the problem's device."""
    assert problem.train_batches is not None
    for epoch_seed in itertools.count(seed, EPOCH_STRIDE):
        empty = True
        for batch in problem.train_batches(epoch_seed):
            empty = False
            yield batch if problem.device is None else _moved(batch, problem.device)
        if empty:
            raise ValueError(f"{problem.name}: train_batches({epoch_seed}) gave no batch")


def _moved(batch: Any, device: str | torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return type(batch)({name: _moved(value, device) for name, value in batch.items()})
    if isinstance(batch, (list, tuple)):
        moved = [_moved(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch
