"""One run: a problem trained with one method, one setting and one seed.

All methods are treated alike: the learning rate warms up linearly over the first 5 % of the steps and then follows a
cosine to zero. A run uses one thread, so its figures do not depend on how many run beside it.

A run has diverged when its loss is not finite or climbs above 100 times its first value (or 100, whichever is more),
or when it ends with a weight or a metric that is not finite. That is a result: the worst one.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import nn

from polyak.lab.contenders import Contender, found_again, state_bytes
from polyak.lab.problems import Problem
from polyak.lab.spec import Bars, RunSpec
from polyak.lab.stopping import hopeless

CURVE_POINTS = 60  # of the training loss
EVALUATIONS = 25  # of the validation metric
WARMUP = 0.05
BLOW_UP = 100.0
EPOCH_STRIDE = 1_000_003  # far enough that the epochs of one run never meet the seed of another
COMPILING_STEPS = 2  # the calls in which an optimizer may compile


@dataclass
class Outcome:
    """What a run came to. ``detail`` holds curves, sizes and, under ``timing``, everything that a clock measured."""

    status: str
    metric: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)


def learning_rate_factor(step: int, steps: int) -> float:
    """What the learning rate is multiplied by in step ``0 .. steps - 1``."""
    warm_up = min(1.0, (step + 1) / max(1, round(WARMUP * steps)))
    return warm_up * 0.5 * (1 + math.cos(math.pi * step / steps))


def make(problem: Problem, spec: RunSpec) -> Outcome:
    """Make a run of a comparison."""
    try:
        contender = found_again(spec.contender or spec.method)
    except Exception as error:
        return Outcome("failed", detail={"error": f"{type(error).__name__}: {error}"})
    if spec.code and contender.code != spec.code:
        return Outcome("failed", detail={"error": f"{spec.method} changed after the comparison had begun"})
    begin = time.perf_counter()
    outcome = execute(problem, contender, spec.setting, spec.seed, spec.split, spec.steps, spec.bars)
    if "timing" in outcome.detail:
        outcome.detail["timing"]["seconds"] = time.perf_counter() - begin
    return outcome


def execute(
    problem: Problem,
    method: Contender | str,
    setting: dict[str, Any],
    seed: int,
    split: str,
    steps: int,
    bars: Bars = (),
) -> Outcome:
    """Train and judge on ``split``; whatever the problem raises becomes a failed run with its traceback."""
    try:
        run = _Run(problem, found_again(method) if isinstance(method, str) else method, setting, seed, steps, bars)
        run.train()
        return run.judge(split)
    except Exception:
        return Outcome("failed", detail={"error": traceback.format_exc()})


class _Run:
    def __init__(
        self, problem: Problem, method: Contender, setting: dict[str, Any], seed: int, steps: int, bars: Bars
    ) -> None:
        _seed_globally(seed)
        self.problem, self.seed, self.steps = problem, seed, steps
        self.model = problem.build_model(seed)
        begin = time.perf_counter()
        self.optimizer = method.build(self.model, **setting)
        self.construction_seconds = time.perf_counter() - begin
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda t: learning_rate_factor(t, steps))
        self.diverged = False
        self.bars, self.stopped_at = bars, 0
        self.losses: list[float] = []
        self.validation: list[tuple[int, float]] = []
        self.validation_seconds: list[float] = []
        self.step_seconds: list[float] = []
        self.optimizer_seconds: list[float] = []

    def train(self) -> None:
        """Take the steps, and stop early if the loss blows up."""
        self.model.train()
        batches = _endless(self.problem, self.seed)
        evaluate_at = set(_spread(self.steps, EVALUATIONS))
        for step in range(1, self.steps + 1):
            self._step(next(batches))
            if self.diverged:
                return
            if step in evaluate_at:
                self._validate(step)
                if hopeless(self.problem, self.steps, self.bars, self.validation):
                    self.stopped_at = step
                    return

    def _step(self, batch: Any) -> None:
        begin = time.perf_counter()
        loss = self.problem.loss(self.model, batch)
        self.optimizer.zero_grad()
        loss.backward()
        value = loss.item()
        self.losses.append(value)
        if not math.isfinite(value) or value > BLOW_UP * max(1.0, abs(self.losses[0])):
            self.diverged = True
            return
        middle = time.perf_counter()
        self.optimizer.step()
        if loss.is_cuda:
            torch.cuda.synchronize()
        end = time.perf_counter()
        self.schedule.step()
        self.step_seconds.append(end - begin)
        self.optimizer_seconds.append(end - middle)

    def _validate(self, step: int) -> None:
        self.validation.append((step, self._evaluate("validation")))
        self.validation_seconds.append(sum(self.step_seconds) - self._excess_seconds())

    def _evaluate(self, split: str) -> float:
        self.model.eval()
        with torch.no_grad():
            metric = float(self.problem.evaluate(self.model, split))
        self.model.train()
        return metric

    def _excess_seconds(self) -> float:
        """What the first steps took beyond ordinary ones."""
        first, later = self.optimizer_seconds[:COMPILING_STEPS], self.optimizer_seconds[COMPILING_STEPS:]
        return max(0.0, sum(first) - len(first) * median(later)) if later else 0.0

    def judge(self, split: str) -> Outcome:
        """The outcome; reads the test split if, and only if, that is the split to judge on."""
        if self.stopped_at:
            return Outcome("stopped", detail={**self._detail(), "stopped_at": self.stopped_at})
        metric = math.nan
        if not self.diverged and _finite(self.model):
            metric = self.validation[-1][1] if split == "validation" else self._evaluate(split)
        detail = self._detail()
        if not math.isfinite(metric):
            return Outcome("diverged", detail=detail)
        return Outcome("finished", metric, detail)

    def _detail(self) -> dict[str, Any]:
        reached = [i for i, (_, metric) in enumerate(self.validation) if self.problem.solved(metric)]
        milliseconds = {
            "step_ms": 1e3 * median(self.step_seconds) if self.step_seconds else None,
            "optimizer_ms": 1e3 * median(self.optimizer_seconds) if self.optimizer_seconds else None,
        }
        return {
            "train": _windows(self.losses, self.steps),
            "validation": [[step, _number(metric)] for step, metric in self.validation],
            "target_step": self.validation[reached[0]][0] if reached else None,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "state_bytes": state_bytes(self.optimizer),
            "timing": {
                **milliseconds,
                "compile_seconds": self.construction_seconds + self._excess_seconds(),
                "target_seconds": self.validation_seconds[reached[0]] if reached else None,
            },
        }


def _seed_globally(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)


def _endless(problem: Problem, seed: int) -> Iterator[Any]:
    for epoch_seed in itertools.count(seed, EPOCH_STRIDE):
        empty = True
        for batch in problem.train_batches(epoch_seed):
            empty = False
            yield batch
        if empty:
            raise ValueError(f"{problem.name}: train_batches({epoch_seed}) gave no batch")


def _spread(steps: int, count: int) -> list[int]:
    """At most ``count`` step numbers, evenly over the run, the last one always among them."""
    return sorted({math.ceil(steps * i / count) for i in range(1, count + 1)})


def _windows(losses: list[float], steps: int) -> list[list[float | int | None]]:
    """The mean training loss of each of at most :data:`CURVE_POINTS` windows, under the step that ends it."""
    curve: list[list[float | int | None]] = []
    begin = 0
    for end in _spread(steps, CURVE_POINTS):
        window = losses[begin:end]
        if not window:
            break
        curve.append([begin + len(window), _number(sum(window) / len(window))])
        begin = end
    return curve


def _finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())


def _number(value: float) -> float | None:
    """JSON has no infinities."""
    return value if math.isfinite(value) else None
