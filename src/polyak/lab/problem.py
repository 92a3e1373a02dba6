"""What a training problem is: a train function of the user's, or the parts of a simple loop."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from polyak.lab.errors import BadInput, suggestion
from polyak.lab.values import is_number

Metrics = Any  # a number, scores of examples, or a dict of them by name
Schedule = Callable[[int, int], float]

WARMUP = 0.05
ONE_CYCLE = (0.3, 25.0, 1e4)  # share of the way up, peak over start, start over end: torch's defaults


class MakeOptimizer(Protocol):
    """Gives the method under test, with the hyperparameters of this trial."""

    def __call__(self, model_or_params: Any, **fixed: Any) -> torch.optim.Optimizer:
        """The optimizer of a module or of what ``torch.optim`` takes; ``fixed`` are arguments that are not tuned."""


class ReportProgress(Protocol):
    """Takes what a loop has come to; see :mod:`polyak.lab.problems`."""

    def __call__(self, step: int, value: Metrics | None = None, *, loss: float | Tensor | None = None) -> None:
        """``value`` is the validation metric after ``step``, ``loss`` the training loss of that step."""

    @property
    def folder(self) -> Path:
        """A folder of the run's own, removed when it has ended."""


Train = Callable[[MakeOptimizer, int, ReportProgress, str], Metrics]


def _cosine(step: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def _warmup_cosine(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / max(1, round(WARMUP * steps))) * _cosine(step, steps)


def _one_cycle(step: int, steps: int) -> float:
    share, rise, fall = ONE_CYCLE
    peak, start = share * steps - 1, 1 / rise
    if step <= peak:
        return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * step / peak))
    end = start / fall
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (step - peak) / (steps - 1 - peak)))


SCHEDULES: dict[str, Schedule] = {
    "warmup-cosine": _warmup_cosine,
    "cosine": _cosine,
    "constant": lambda step, steps: 1.0,
    "onecycle": _one_cycle,
}
PARTS = ("build_model", "train_batches", "loss", "evaluate")
OF_THE_LOOP = (*PARTS, "schedule", "clip", "accumulation", "evaluate_every", "device")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is trained and how it is judged: by a loop of your own (``train``), or by the parts of a simple one.

    Args:
        name: what tables and charts call it.
        metric: what the problem is judged by, in words.
        higher_is_better: whether a higher metric is better.
        target: the validation metric at which the problem counts as solved; the report says how soon it was met.
        description: a sentence for the report.
        train: a training script, ``train(make_optimizer, seed, report, split) -> metrics``, as
            :mod:`polyak.lab.problems` describes it.
        steps: how many steps a run takes. With ``train``, which decides that itself, the last step it will report,
            so that progress and the time left are known; it may be left out.
        build_model: the untrained model of a seed. The global generators are seeded with the same seed just
            before, so ordinary layers need no generator.
        train_batches: the training batches of a seed, an endless iterator or one epoch. When it ends, it is asked
            again with another seed.
        loss: the loss of a model on a batch, a tensor with one element.
        evaluate: the metric of a model on ``"validation"`` or ``"test"``: a number, a score for each example (their
            mean is judged), or a dict that has one of these under the name ``metric`` and others beside it. The
            model is in ``eval()`` mode and no gradient is recorded. Tuning asks for ``"validation"`` alone;
            ``"test"`` is asked once, at the end of each run that is reported.
        schedule: what the learning rate is multiplied by, ``schedule(step, steps)`` with ``step`` from 0, or one of
            "warmup-cosine" (5 % of the steps up, then to zero), "cosine", "constant", "onecycle".
        clip: the largest norm of the whole gradient; None does not clip.
        accumulation: how many batches make one step.
        evaluate_every: steps from one validation to the next; None makes 25 of them. The last step always has one.
        device: where the model and the tensors of its batches are put; None leaves them where they are made.
    """

    name: str
    metric: str
    higher_is_better: bool
    target: float | None = None
    description: str = ""
    train: Train | None = None
    steps: int | None = None
    build_model: Callable[[int], nn.Module] | None = None
    train_batches: Callable[[int], Iterable[Any]] | None = None
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    evaluate: Callable[[nn.Module, str], Metrics] | None = None
    schedule: str | Schedule = "warmup-cosine"
    clip: float | None = None
    accumulation: int = 1
    evaluate_every: int | None = None
    device: str | torch.device | None = None

    def __post_init__(self) -> None:
        self._check_words()
        if self.train is None:
            self._check_parts()
        else:
            self._check_train()

    def _wrong(self, name: str, allowed: str) -> ValueError:
        return ValueError(f"Problem {self.name!r}: {name} must be {allowed}, got {getattr(self, name)!r}")

    def _check_words(self) -> None:
        for name in ("name", "metric"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise self._wrong(name, "a text that is not empty")
        if not isinstance(self.higher_is_better, bool):
            raise self._wrong("higher_is_better", "True or False")
        if self.target is not None and not _is_finite(self.target):
            raise self._wrong("target", "a finite number or None")

    def _check_train(self) -> None:
        if not callable(self.train):
            raise TypeError(f"Problem {self.name!r}: train must be callable, got {self.train!r}")
        beside = [f.name for f in fields(self) if f.name in OF_THE_LOOP and getattr(self, f.name) != f.default]
        if beside:
            raise ValueError(
                f"Problem {self.name!r}: train= brings its own loop, beside which {', '.join(beside)} does nothing; "
                "leave one or the other out"
            )
        if self.steps is not None and not _is_count(self.steps):
            raise self._wrong("steps", "a positive integer or None")

    def _check_parts(self) -> None:
        if not _is_count(self.steps):
            raise self._wrong("steps", "a positive integer")
        for part in PARTS:
            if not callable(getattr(self, part)):
                raise TypeError(f"Problem {self.name!r}: {part} must be callable, got {getattr(self, part)!r}")
        if not callable(self.schedule) and self.schedule not in SCHEDULES:
            raise self._wrong("schedule", f"a function (step, steps) -> factor or one of {list(SCHEDULES)}")
        if self.clip is not None and not (_is_finite(self.clip) and self.clip > 0):
            raise self._wrong("clip", "a positive number or None")
        if not _is_count(self.accumulation):
            raise self._wrong("accumulation", "a positive integer")
        if self.evaluate_every is not None and not _is_count(self.evaluate_every):
            raise self._wrong("evaluate_every", "a positive integer or None")

    def on(self, device: str) -> Problem:
        """The same problem on a device; none, or a train function, which sees to that itself, leaves it as it is."""
        return replace(self, device=device) if device and self.train is None else self

    def run_steps(self, wanted: int | None) -> int | None:
        """How many steps a run takes: the number wanted for all, or the problem's own; None where nobody knows."""
        if wanted is not None and self.train is not None:
            raise BadInput(f"{self.name}: steps={wanted} cannot be kept, its train function decides how many it takes")
        return whole(self.steps if wanted is None else wanted)

    def better(self, a: float, b: float) -> bool:
        """Whether metric ``a`` is better than metric ``b``."""
        return a > b if self.higher_is_better else a < b

    def solved(self, metric: float) -> bool:
        """Whether a metric meets the target; never without one."""
        return self.target is not None and (self.better(metric, self.target) or metric == self.target)

    def with_target(self, detail: Mapping[str, Any]) -> dict[str, Any]:
        """A run's detail with ``target_step`` and ``target_seconds``: where its validation curve first met the target.

        They are no part of what a run computes: a stored run gets them anew, since the target may have changed.
        """
        if "validation" not in detail:
            return dict(detail)
        points: Sequence[Sequence[Any]] = detail["validation"]
        reached = next((i for i, (_, value) in enumerate(points) if value is not None and self.solved(value)), None)
        seconds = None if reached is None else detail["timing"]["validation_seconds"][reached]
        timing = {**detail["timing"], "target_seconds": seconds}
        return {**detail, "target_step": None if reached is None else points[reached][0], "timing": timing}

    def judged(self, value: Metrics) -> tuple[float, dict[str, float], list[float]]:
        """The judged metric, the others by name, and the scores of the examples where they were given."""
        others: dict[str, float] = {}
        if isinstance(value, Mapping):
            if self.metric not in value:
                raise ValueError(f"the metrics have no {self.metric!r}; {suggestion(self.metric, map(str, value))}")
            others = {str(name): _mean(each, str(name))[0] for name, each in value.items() if name != self.metric}
            value = value[self.metric]
        mean, scores = _mean(value, self.metric)
        return mean, others, scores


def _mean(value: Any, name: str) -> tuple[float, list[float]]:
    """A number, or the mean of the scores of examples, and these scores."""
    if hasattr(value, "tolist"):  # tensors and arrays
        value = value.tolist()
    if isinstance(value, (list, tuple)) and value:
        scores = [number(each, name) for each in value]
        return (scores[0], []) if len(scores) == 1 else (math.fsum(scores) / len(scores), scores)
    return number(value, name), []


def number(value: Any, name: str) -> float:
    """A number as a float; text, None and whatever else is refused by name."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, got {value!r:.80}") from None


def whole(value: Any) -> int | None:
    """An integer, NumPy's too, as Python's own; None for anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _is_count(value: Any) -> bool:
    return (whole(value) or 0) >= 1


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
