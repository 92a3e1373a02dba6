"""From the runs of two methods to the comparison that their seeds, their tuning and their test examples allow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from polyak.lab.evidence import Evidence, goodness
from polyak.lab.intervals import Comparison, Diverged, Paired, examples_error
from polyak.lab.tuning import Array, tuning_error


@dataclass(frozen=True)
class Pair:
    """A method beside the reference on the seeds that both have.

    Attributes:
        method: its test metric by seed, turned so that more is better; minus infinity where it diverged.
        reference: the reference's.
        comparison: what follows of their difference.
        warnings: what was left out, and what diverged.
    """

    method: tuple[float, ...]
    reference: tuple[float, ...]
    comparison: Comparison
    warnings: tuple[str, ...]

    @property
    def probability_of_improvement(self) -> float | None:
        """The share of seeds on which the method is better; equal results count half."""
        won = [0.5 if one == other else float(one > other) for one, other in self._seeds()]
        return float(np.mean(won)) if won else None

    def _seeds(self) -> list[tuple[float, float]]:
        return list(zip(self.method, self.reference, strict=True))


def pair(method: Evidence, reference: Evidence, higher_is_better: bool) -> Pair:
    """Set the runs of a method beside the reference's."""
    ours, theirs = _finals(method, reference), _finals(reference, method)
    seeds = sorted(ours.keys() & theirs.keys())
    one = tuple(goodness(ours[seed], higher_is_better) for seed in seeds)
    other = tuple(goodness(theirs[seed], higher_is_better) for seed in seeds)
    warnings = []
    if alone := len(ours.keys() ^ theirs.keys()):
        warnings.append(f"{alone} runs were left out, because the other method has none on their seeds")
    both = [seed for seed, a, b in zip(seeds, one, other, strict=True) if math.isfinite(a) and math.isfinite(b)]
    finite, more = _finite(method, reference, both, higher_is_better)
    comparison: Comparison = finite
    if list(map(math.isfinite, one)) != list(map(math.isfinite, other)) or not both:
        comparison = Diverged(one, other, finite) if seeds else finite
    elif lost := len(seeds) - len(both):
        warnings.append(f"{lost} of {len(seeds)} seeds were left out, because both methods diverged on them")
    return Pair(one, other, comparison, (*warnings, *more))


def _finite(
    method: Evidence, reference: Evidence, seeds: list[int], higher_is_better: bool
) -> tuple[Paired, tuple[str, ...]]:
    """The comparison on the seeds on which neither diverged, and what is to be known of it."""
    values = [[goodness(each.finals[seed], higher_is_better) for seed in seeds] for each in (method, reference)]
    differences = tuple(one - other for one, other in zip(*values, strict=True))
    # Used where no trial ran on two seeds: what a seed makes in one of two methods that start alike.
    noise = float(np.std(differences, ddof=1)) / math.sqrt(2) if len(seeds) > 1 else 0.0
    tuning = math.hypot(*(tuning_error(each.trials, higher_is_better, noise) for each in (method, reference)))
    scores = _score_differences(method, reference, seeds, higher_is_better)
    if scores is None:
        return Paired(differences, tuning), ()
    if np.allclose(scores.mean(1), differences, rtol=1e-3, atol=1e-6 * float(np.abs(values).max())):
        return Paired(differences, tuning, examples_error(scores)), ()
    warning = "the scores of the test examples do not average to the metric and were left out"
    return Paired(differences, tuning), (warning,)


def _finals(one: Evidence, other: Evidence) -> Mapping[int, float | None]:
    """The test metrics; a method all of whose trials diverged would have diverged on the other's seeds as well.

    Not so where errors ended some: those say nothing of the method.
    """
    diverged = (
        one.trials
        and not one.failure
        and not any(math.isfinite(goodness(value, True)) for trial in one.trials for value in trial.validation)
    )
    return dict.fromkeys(other.finals) if diverged and not one.finals else one.finals


def _score_differences(method: Evidence, reference: Evidence, seeds: list[int], higher_is_better: bool) -> Array | None:
    """Differences of the scores, (seeds, examples), where both methods have them for the same examples."""
    scores = [(one.scores or {}).get(seed) for one in (method, reference) for seed in seeds]
    rows = [np.asarray(row, dtype=float) for row in scores if row is not None]
    if not rows or len(rows) < len(scores):
        return None
    if len({row.shape for row in rows}) > 1 or not all(np.isfinite(row).all() for row in rows):
        return None
    difference: Array = np.array(rows[: len(seeds)]) - np.array(rows[len(seeds) :])
    return difference if higher_is_better else -difference
