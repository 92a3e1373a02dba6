"""What is known of one method on one problem, and which of its settings is reported.

A diverged run counts as infinitely bad. It is written ``None``, and so is whatever is infinite because of it: no
infinity and no NaN leaves these modules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from polyak.declare import Range
from polyak.lab.described import Space

Call = Literal["better", "worse", "equivalent", "unsettled"]
"""What is said of a method beside the reference."""

EDGE = 0.15
"""A value in this share of its range at either end lies at the edge: the best one may lie outside."""


@dataclass(frozen=True)
class Trial:
    """One setting that tuning tried.

    Attributes:
        setting: the hyperparameters.
        validation: the validation metric on each tuning seed so far. All trials have the first seed; the best few are
            run again on more, the same ones for each.
    """

    setting: dict[str, Any]
    validation: tuple[float | None, ...]


@dataclass(frozen=True)
class Evidence:
    """All runs of one method on one problem.

    Attributes:
        method: its name.
        trials: the tuning runs.
        finals: the test metric by seed, at the setting that was chosen.
        scores: where the problem gives them, the score of every single test example, by seed: their mean is the metric.
        chosen: the index of the trial whose setting the finals have; ``None`` for the first of :func:`ranking`.
        failure: where errors ended tuning runs and no trial has a figure, the first of the errors; such runs are none
            of the trials.
    """

    method: str
    trials: tuple[Trial, ...]
    finals: Mapping[int, float | None]
    scores: Mapping[int, Sequence[float]] | None = None
    chosen: int | None = None
    failure: str | None = None


def goodness(value: float | None, higher_is_better: bool) -> float:
    """The metric turned so that more is better; minus infinity for a diverged run."""
    if value is None or not math.isfinite(value):
        return -math.inf
    return float(value) if higher_is_better else -float(value)


def ranking(trials: Sequence[Trial], higher_is_better: bool) -> list[int]:
    """The trials that finished at least once, the best first.

    First come those that diverged on the smallest share of their seeds, of these the ones that ran on the most seeds,
    of these the ones with the best mean: a mean of one seed is never compared with a mean of three, because the best
    of many single values owes much to luck. Of equals the earlier trial comes first.
    """

    def key(index: int) -> tuple[float, int, float]:
        values = [goodness(value, higher_is_better) for value in trials[index].validation]
        finished = [value for value in values if math.isfinite(value)]
        return 1 - len(finished) / len(values), -len(values), -fmean(finished)

    usable = [
        index
        for index, trial in enumerate(trials)
        if any(math.isfinite(goodness(value, higher_is_better)) for value in trial.validation)
    ]
    return sorted(usable, key=key)


def expected_validation(trials: Sequence[Trial], k: int, higher_is_better: bool) -> float | None:
    """The expected best validation of ``k`` trials drawn from ``trials`` with replacement.

    The closed form of Dodge et al. (2019, "Show Your Work"), which Sivaprasad et al. (2020) draw to show what a budget
    buys. It looks at the first tuning seed, which every trial has, and at the draws in which a trial came to a figure.

    Args:
        trials: the tuning runs.
        k: the budget, at least 1.
        higher_is_better: whether the best is the largest.

    Returns:
        The expectation, or ``None`` where no trial finished.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    values = sorted(goodness(trial.validation[0], higher_is_better) for trial in trials if trial.validation)
    count = len(values)
    best = [(value, ((i + 1) / count) ** k - (i / count) ** k) for i, value in enumerate(values)]
    finished = [(value, chance) for value, chance in best if math.isfinite(value)]
    if not finished:
        return None
    mean = math.fsum(value * chance for value, chance in finished) / math.fsum(chance for _, chance in finished)
    return mean if higher_is_better else -mean


def evidence_warnings(evidence: Evidence, higher_is_better: bool, space: Space) -> list[str]:
    """What a reader should know before trusting a method's chosen setting and its runs."""
    order = ranking(evidence.trials, higher_is_better)
    if evidence.chosen is not None:
        order = [evidence.chosen, *(index for index in order if index != evidence.chosen)]
    warnings = []
    if order:
        best = evidence.trials[order[0]]
        warnings = _edge_warnings(space, best.setting)
        if len(order) > 1:
            warnings.append(_lead(best, evidence.trials[order[1]], higher_is_better))
    elif evidence.failure is not None:
        warnings.append(f"no trial ended with a figure: {evidence.failure}")
    elif evidence.trials:
        warnings.append("every trial diverged")
    lost = [seed for seed, value in evidence.finals.items() if not math.isfinite(goodness(value, higher_is_better))]
    if lost:
        warnings.append(f"diverged on {len(lost)} of {len(evidence.finals)} seeds")
    return [warning for warning in warnings if warning]


def edges(space: Space, setting: Mapping[str, Any]) -> dict[str, str]:
    """The numbers of a setting that lie at an edge of their range, and at which: "lower" or "upper".

    A published default outside the range is near no edge of it.
    """
    found = {}
    for name, dimension in space.items():
        value = setting.get(name)
        if not isinstance(dimension, Range) or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        low, high = dimension.low, dimension.high
        if low <= value <= high and low < high:
            scale = math.log if dimension.log else float
            place = (scale(value) - scale(low)) / (scale(high) - scale(low))
            if not EDGE < place < 1 - EDGE:
                found[name] = "lower" if place <= EDGE else "upper"
    return found


def _edge_warnings(space: Space, setting: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {setting[name]:g} lies at the {end} end of its range, {dimension.low:g} to {dimension.high:g}: "
        "a better one may lie outside"
        for name, end in edges(space, setting).items()
        if isinstance(dimension := space[name], Range)
    ]


def _lead(first: Trial, second: Trial, higher_is_better: bool) -> str:
    """A lead that shows on one tuning seed only may be that seed's luck."""
    both = list(zip(first.validation, second.validation, strict=False))
    ahead = sum(goodness(one, higher_is_better) > goodness(other, higher_is_better) for one, other in both)
    if ahead > 1:
        return ""
    seeds = "its only tuning seed" if len(both) == 1 else f"{ahead} of {len(both)} tuning seeds"
    return f"the chosen setting is ahead of the second best on {seeds}"
