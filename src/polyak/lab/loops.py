"""What surrounds a run, whoever wrote its loop: it makes the optimizer, takes the reports and keeps the clock.

A run has diverged when weights are not finite, when the running training loss (the median of the last
:data:`RUNNING`) is above 100 times its first value (or 100, whichever is more), or when it ends with a metric that is
not finite. That is a result: the worst one. A single outlier among the batches is none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from polyak.lab.contenders import Contender, state_bytes
from polyak.lab.errors import BadInput, in_one_line
from polyak.lab.problem import Metrics, Problem, number, whole
from polyak.lab.settings import checked
from polyak.lab.spec import Bars
from polyak.lab.stopping import hopeless
from polyak.lab.values import finite

BLOW_UP = 100.0
RUNNING = 10  # losses
COMPILING_STEPS = 2  # the calls in which an optimizer may compile
EVERY_STEP, SOME_STEPS = 10, 10  # on a GPU an optimizer's first steps are timed, then every tenth
CURVE_POINTS = 60  # of the training loss


class StopRun(BaseException):
    """Ends a run early. No ``Exception``, so that a loop's own handlers let it pass. Only ``report`` raises it."""


def why(error: BaseException) -> str:
    """What a problem raised, in one line."""
    hint = "; report() alone ends a run so: return the metric to end it early" if isinstance(error, StopRun) else ""
    return in_one_line(error) + hint


@dataclass
class Outcome:
    """What a run came to.

    ``status`` is "finished", "stopped" (on purpose), "diverged", "failed", "crashed" or
    "timeout". ``detail`` holds curves, sizes, unless it finished ``reason`` and ``step``, and, under ``timing``,
    everything that a clock measured.
    """

    status: str
    metric: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)


class _Clock:
    """Seconds of training: waiting for data counts, evaluating does not."""

    def __init__(self) -> None:
        self.before = 0.0  # up to the last report of a value
        self._begin = self._stepped = time.perf_counter()

    def stepped(self) -> float:
        """A step has ended; returns the seconds that it took."""
        last, self._stepped = self._stepped, time.perf_counter()
        return self._stepped - last

    def evaluated(self) -> float:
        """What came since the last step was evaluation; returns the seconds of training so far."""
        self.before += self._stepped - self._begin
        return self.before

    def go_on(self) -> None:
        """Training goes on."""
        self._begin = self._stepped = time.perf_counter()


class _Timed:
    """Counts and times the steps of one optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer, stepped: Callable[[], None]) -> None:
        self.optimizer, self.count, self.seconds = optimizer, 0, list[float]()
        self._begin, self._stepped = 0.0, stepped
        self._on_gpu = any(p.is_cuda for p in parameters_of(optimizer))
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def _before(self, *_: Any) -> None:
        self._is_timed = not self._on_gpu or self.count < EVERY_STEP or self.count % SOME_STEPS == 0
        if self._on_gpu and self._is_timed:
            torch.cuda.synchronize()
        self._begin = time.perf_counter()

    def _after(self, *_: Any) -> None:
        if self._is_timed:
            if self._on_gpu:
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self._begin)
        self.count += 1
        self._stepped()

    def excess(self) -> float:
        """What the first steps took beyond ordinary ones."""
        first, later = self.seconds[:COMPILING_STEPS], self.seconds[COMPILING_STEPS:]
        return max(0.0, sum(first) - len(first) * median(later)) if later else 0.0


class Run:
    """One run, as its loop sees it.

    Args:
        problem: what is trained.
        method: the method under test.
        setting: its hyperparameters.
        steps: how many steps the run will report, where that is known.
        bars: steps with the validation metric that the run must hold there to go on.
        progress: is told the step with every report.
        halt: is asked after every step and report whether to stop.
    """

    def __init__(
        self,
        problem: Problem,
        method: Contender,
        setting: Mapping[str, Any],
        steps: int | None = None,
        bars: Bars = (),
        progress: Callable[[int], None] | None = None,
        halt: Callable[[Run], bool] | None = None,
    ) -> None:
        self.problem, self.method, self.setting, self.steps = problem, method, setting, steps
        self.step = 0
        self.optimizers: list[_Timed] = []
        self.step_seconds: list[float] = []
        self.losses: list[tuple[int, float]] = []
        self.validation: list[tuple[int, float]] = []
        self.result: float | None = None
        self._bars, self._progress, self._halt = bars, progress, halt
        self._validation_seconds: list[float] = []
        self._construction_seconds = 0.0
        self._began = time.perf_counter()
        self._clock = _Clock()
        self._end: tuple[str, str] | None = None

    def make_optimizer(self, model_or_params: Any, **fixed: Any) -> torch.optim.Optimizer:
        """The method under test with this trial's hyperparameters; ``fixed`` are others that it takes."""
        model_or_params = checked(self.method.name, self.setting, model_or_params, fixed)
        begin = time.perf_counter()
        optimizer = self.method.build(model_or_params, **{**self.setting, **fixed})
        self._construction_seconds += time.perf_counter() - begin
        try:
            timed = _Timed(optimizer, self._stepped if not self.optimizers else lambda: None)
        except AttributeError as error:
            cure = "call super().__init__(params, defaults) in its __init__"
            raise BadInput(f"{self.method.name} was never made a torch.optim.Optimizer: {error}; {cure}") from error
        self.optimizers.append(timed)
        if len(self.optimizers) == 1:
            self._clock.go_on()
        return optimizer

    def _stepped(self) -> None:
        self.step_seconds.append(self._clock.stepped())
        self._ask_to_halt()

    def _ask_to_halt(self) -> None:
        if self._halt and self._halt(self):
            self.stop("stopped", "it was not to go on")

    def report(self, step: int, value: Metrics | None = None, *, loss: float | Tensor | None = None) -> None:
        """Take what the loop has come to after ``step``: a validation metric, a training loss or both."""
        if self._end:
            raise StopRun(self._end[1])  # the loop caught it the first time
        self.step = self._checked(step)
        if loss is not None:
            self._take_loss(number(loss, "report(loss=...)"))
        if value is not None:
            self._take_value(value)
        if self._progress:
            self._progress(self.step)
        self._ask_to_halt()

    def _checked(self, step: Any) -> int:
        count = whole(step)
        if count is None or count < self.step:
            raise ValueError(f"report(step): step must be an integer from {self.step}, the last one, on; got {step!r}")
        return count

    def _take_loss(self, loss: float) -> None:
        self.losses.append((self.step, loss))
        if not math.isfinite(loss):
            self._check_weights()
        recent = [value if math.isfinite(value) else math.inf for _, value in self.losses[-RUNNING:]]
        first = abs(self.losses[0][1])
        bound = BLOW_UP * max(1.0, first if math.isfinite(first) else 1.0)
        if len(recent) == RUNNING and median(recent) > bound:
            self.stop("diverged", f"the running training loss is {median(recent):.3g}, at first it was {first:.3g}")

    def _take_value(self, value: Metrics) -> None:
        seconds = self._clock.evaluated()
        metric, _, _ = self.problem.judged(value)
        self._check_weights()
        self.validation.append((self.step, metric))
        self._validation_seconds.append(max(0.0, seconds - sum(each.excess() for each in self.optimizers)))
        reached = tuple(bar for bar in self._bars if bar[0] <= self.step)
        self._bars = self._bars[len(reached) :]
        if hopeless(self.problem, self.steps, reached, self.validation):
            reason = f"its validation up to step {reached[-1][0]} is worse than that of half of the earlier trials"
            self.stop("stopped", reason)
        self._clock.go_on()

    def _check_weights(self) -> None:
        if not all(bool(torch.isfinite(p).all()) for each in self.optimizers for p in parameters_of(each.optimizer)):
            self.stop("diverged", "weights are not finite")

    @property
    def is_over(self) -> bool:
        """Whether the run was ended early, whatever its loop still does."""
        return self._end is not None

    def stop(self, status: str, reason: str) -> None:
        """End the run, for good."""
        self._end = status, reason
        raise StopRun(reason)

    def outcome(self, returned: Metrics, split: str) -> Outcome:
        """What a run came to whose loop returned; raises like the loop where that is a mistake."""
        if self._end:  # the loop caught it
            return self.stopped()
        if not self.optimizers:
            raise ValueError("train() never called make_optimizer(), so there is nothing to compare")
        metric, others, scores = self.problem.judged(returned)
        self.result = metric
        try:
            self._check_weights()
            if not math.isfinite(metric):
                self.stop("diverged", f"the {split} metric is {metric}")
        except StopRun:
            return self.stopped()
        kept = {"scores": scores} if scores and split == "test" else {}
        return Outcome("finished", metric, {**self._detail(), "metrics": _numbers(others), **kept})

    def stopped(self) -> Outcome:
        """What a run came to that was ended early."""
        assert self._end is not None
        status, reason = self._end
        return Outcome(status, detail={**self._detail(), "reason": reason, "step": self.step})

    def _detail(self) -> dict[str, Any]:
        timed = [each for each in self.optimizers if each.seconds]
        parameters = {id(p): p.numel() for each in self.optimizers for p in parameters_of(each.optimizer)}
        excess = sum(each.excess() for each in self.optimizers)
        detail = {
            "train": _windows(self.losses, self.steps or self.step),
            "validation": [[step, finite(metric)] for step, metric in self.validation],
            "parameters": sum(parameters.values()),
            "state_bytes": sum(state_bytes(each.optimizer) for each in self.optimizers),
            "timing": {
                "step_ms": 1e3 * median(self.step_seconds) if self.step_seconds else None,
                "optimizer_ms": 1e3 * sum(median(each.seconds) for each in timed) if timed else None,
                "compile_seconds": self._construction_seconds + excess,
                "total_seconds": time.perf_counter() - self._began,
                "validation_seconds": self._validation_seconds,
            },
        }
        return self.problem.with_target(detail)


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    """The parameters that an optimizer trains."""
    return (p for group in optimizer.param_groups for p in group["params"])


def spread(steps: int, count: int) -> list[int]:
    """At most ``count`` step numbers, evenly over the run, the last one always among them."""
    return sorted({math.ceil(steps * i / count) for i in range(1, count + 1)})


def _windows(losses: list[tuple[int, float]], steps: int) -> list[list[float | int | None]]:
    """The mean training loss of each of at most :data:`CURVE_POINTS` windows, under the last step reported in it."""
    curve: list[list[float | int | None]] = []
    ends, window = iter([*spread(steps, CURVE_POINTS), math.inf]), list[float]()
    end = next(ends)
    for place, (step, loss) in enumerate(losses, 1):
        window.append(loss)
        following = losses[place][0] if place < len(losses) else math.inf
        if following > end or place == len(losses):
            curve.append([step, finite(sum(window) / len(window))])
            window.clear()
            while following > end and end < math.inf:
                end = next(ends)
    return curve


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: finite(value) for name, value in values.items()}
