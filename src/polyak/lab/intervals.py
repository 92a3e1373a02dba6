"""What two methods' runs on the same seeds say of their difference.

The difference of two tuned methods is uncertain for three reasons, and its interval adds their half widths in
quadrature, each at its own quantile (Howe's rule, also called MOVER):

- *seeds*: Student's t on the differences paired by seed, since both methods start from the same weights and see the
  same batches. BCa bootstrap intervals of 5 to 8 differences cover too little (benchmarks/lab_power.py shows both);
- *tuning*: what another tuning of either method would have ended at, see :mod:`polyak.lab.tuning`;
- *examples*: the finite test set, where the score of every example is known.

One effective t quantile for all three would grow with the number of seeds, because the tuning part has few degrees of
freedom and weighs more the less the seeds do. Here more seeds can only narrow the interval.

Differences that are all the same and not 0 have no spread to judge by: a metric that moves in steps may hide it. Then
the signs decide, and ``n`` equal ones come about with chance ``2 ** (1 - n)``.

Diverged runs are infinitely bad and have no mean: where there is one, how often either method diverged is compared, and
the other seeds apart from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from polyak.lab.evidence import Call
from polyak.lab.statistics import median
from polyak.lab.tuning import DEGREES, Array

FEWEST = 5
"""Seeds to ask for where there are too few to say anything, not even how many more it would take."""
MOST = 1000
"""Seeds beyond which no advice is given."""


@dataclass(frozen=True)
class Levels:
    """The levels that a method is judged at.

    Attributes:
        difference: of "better" and "worse".
        equivalence: of "equivalent".
    """

    difference: float
    equivalence: float

    def half(self) -> Levels:
        """Each shared by two tests."""
        return replace(self, difference=self.difference / 2, equivalence=self.equivalence / 2)

    @property
    def least(self) -> float:
        """The one whose interval is the wider."""
        return min(self.difference, self.equivalence)


class Comparison(Protocol):
    """One method against the reference: a difference, positive where the method is better, and its uncertainty."""

    @property
    def difference(self) -> float | None: ...

    def p_value(self) -> float: ...

    def p_equivalence(self, margin: float) -> float: ...

    def interval(self, alpha: float) -> tuple[float, float] | None: ...

    def decide(self, levels: Levels, margin: float) -> tuple[Call, float]: ...

    def more_seeds(self, levels: Levels, margin: float) -> int | None: ...


@dataclass(frozen=True)
class Paired:
    """Finite differences, one a seed.

    Attributes:
        differences: the method's metric minus the reference's, turned so that more is better.
        tuning: the standard deviation that tuning gives the difference.
        examples: the standard error of its mean that the finite test set gives it.
    """

    differences: Sequence[float]
    tuning: float = 0.0
    examples: float = 0.0

    @property
    def difference(self) -> float | None:
        """The mean over the seeds."""
        return float(np.mean(self.differences)) if self.differences else None

    def half_width(self, alpha: float, seeds: ArrayLike | None = None) -> Array:
        """Half the width of the interval at level ``1 - alpha``, now or had there been ``seeds`` like these."""
        count = np.asarray(len(self.differences) if seeds is None else seeds, dtype=float)
        upper = 1 - alpha / 2
        if self._is_constant:
            by_seeds = np.where(alpha < _by_sign(count), abs(self.differences[0]), 0.0)  # up to 0, or nothing
        else:
            by_seeds = special.stdtrit(count - 1, upper) * float(np.std(self.differences, ddof=1)) / np.sqrt(count)
        parts = (by_seeds, special.stdtrit(DEGREES, upper) * self.tuning, special.ndtri(upper) * self.examples)
        width: Array = np.sqrt(sum(part**2 for part in parts))
        return width

    @property
    def _is_constant(self) -> bool:
        """Whether the differences are all the same, but for rounding."""
        return float(np.std(self.differences, ddof=1)) <= 1e-12 * float(np.max(np.abs(self.differences)))

    def p_value(self) -> float:
        """The level at which the interval ends at 0, at least 1e-9; 1 with fewer than two seeds."""
        if len(self.differences) < 2 or not self.difference:
            return 1.0
        found = self._level_of(abs(self.difference))
        return max(found, float(_by_sign(len(self.differences)))) if self._is_constant else found

    def p_equivalence(self, margin: float) -> float:
        """The level at which the interval ends at the margin, at least 1e-9; 1 with fewer than two seeds."""
        if len(self.differences) < 2 or self.difference is None or abs(self.difference) > margin:
            return 1.0
        return self._level_of(margin - abs(self.difference))

    def _level_of(self, half_width: float) -> float:
        def beyond(exponent: float) -> float:
            return float(self.half_width(10**exponent)) - half_width

        return 10 ** float(optimize.brentq(beyond, -9, 0, xtol=1e-4)) if beyond(-9) > 0 else 1e-9

    def interval(self, alpha: float) -> tuple[float, float] | None:
        """The interval at level ``1 - alpha``; one seed has none."""
        if len(self.differences) < 2 or self.difference is None:
            return None
        half = float(self.half_width(alpha))
        return self.difference - half, self.difference + half

    def decide(self, levels: Levels, margin: float) -> tuple[Call, float]:
        """Equivalent if the whole interval is within the margin, else better or worse if it leaves out 0.

        Each at its own level. Where the interval at the level of differences is within the margin too, though not at
        that of equivalence, the latter's alone says what it is.

        Returns:
            The call, and the level of the interval that shows it.
        """
        wide, found = self.interval(levels.equivalence), self.interval(levels.difference)
        if wide is None or found is None:
            return "unsettled", levels.least
        if _within(wide, margin):
            return "equivalent", levels.equivalence
        (low, high), level = (wide, levels.equivalence) if _within(found, margin) else (found, levels.difference)
        if low <= 0 <= high:
            return "unsettled", levels.least
        return "better" if low > 0 else "worse", level

    def more_seeds(self, levels: Levels, margin: float) -> int | None:
        """How many seeds more would settle it if they were like these; ``None`` if not even a thousand would."""
        seeds = len(self.differences)
        if seeds < 2 or self.difference is None:
            return FEWEST - seeds
        counts, size = np.arange(seeds + 1, MOST + 1), abs(self.difference)
        half, wide = (self.half_width(alpha, counts) for alpha in (levels.difference, levels.equivalence))
        differs = np.where(size + half <= margin, wide, half) < size
        return _first(counts, differs | (size + wide <= margin), seeds)


@dataclass(frozen=True)
class Diverged:
    """Values some of which are infinitely bad, so that they have no mean.

    Better or worse is a method that diverged on a different share of its seeds (Fisher's exact test), or whose other
    seeds say so (:class:`Paired`), where the two do not contradict each other: a method that diverged more often than
    the other is never the better one, however good its other runs are. Both tests share the level. Nothing is
    equivalent, and there is no interval.

    Attributes:
        method: the method's metric by seed, turned so that more is better; minus infinity where it diverged.
        reference: the reference's.
        finite: the differences on the seeds on which neither diverged.
    """

    method: Sequence[float]
    reference: Sequence[float]
    finite: Paired

    @property
    def difference(self) -> float | None:
        """The median of the differences by seed, or ``None`` where that is infinite or both diverged on all."""
        pairs = zip(self.method, self.reference, strict=True)
        known = [one - other for one, other in pairs if math.isfinite(one) or math.isfinite(other)]
        middle = median(known) if known else math.inf
        return middle if math.isfinite(middle) else None

    @property
    def _lost(self) -> tuple[int, int]:
        """The number of the method's diverged runs and of the reference's."""
        return sum(map(math.isinf, self.method)), sum(map(math.isinf, self.reference))

    @property
    def _has_pairs(self) -> bool:
        return len(self.finite.differences) > 1

    def p_value(self) -> float:
        """Two-sided, of no difference at all."""
        found = float(_by_losses(*self._lost, len(self.method)))
        return min(1.0, 2 * min(found, self.finite.p_value())) if self._has_pairs else found

    def p_equivalence(self, margin: float) -> float:
        """Nothing is equivalent."""
        return 1.0

    def interval(self, alpha: float) -> None:
        """There is none."""

    def decide(self, levels: Levels, margin: float) -> tuple[Call, float]:
        """Better or worse if a test says so and nothing contradicts it, and the level of that."""
        shared = levels.half() if self._has_pairs else levels
        ours, theirs = self._lost
        others, level = self.finite.decide(shared, margin)
        if (others == "better" and ours > theirs) or (others == "worse" and ours < theirs):
            return "unsettled", level
        if _by_losses(ours, theirs, len(self.method)) <= shared.difference:
            return "better" if ours < theirs else "worse", level
        return "unsettled" if others == "equivalent" else others, level

    def more_seeds(self, levels: Levels, margin: float) -> int | None:
        """How many seeds more would settle it if they were like these; ``None`` if not even a thousand would."""
        seeds, (ours, theirs) = len(self.method), self._lost
        shared = levels.half() if self._has_pairs else levels
        ahead = (self.finite.difference or 0.0) if self._has_pairs else 0.0
        if ahead * (theirs - ours) < 0 or not seeds:
            return None
        counts = np.arange(seeds + 1, MOST + 1)
        p = _by_losses(np.rint(counts * (ours / seeds)), np.rint(counts * (theirs / seeds)), counts)
        found = [_first(counts, p <= shared.difference, seeds)]
        if abs(ahead) > margin:  # else they would turn out equivalent
            found.append(self.finite.more_seeds(shared, margin))
        return min((more for more in found if more is not None), default=None)


def _within(interval: tuple[float, float], margin: float) -> bool:
    return -margin <= interval[0] and interval[1] <= margin


def _by_sign(seeds: ArrayLike) -> Array:
    """The two-sided chance that so many differences have one sign where either is as likely."""
    chance: Array = 2.0 ** (1 - np.asarray(seeds, dtype=float))
    return chance


def _by_losses(ours: ArrayLike, theirs: ArrayLike, seeds: ArrayLike) -> Array:
    """The two-sided p value of Fisher's exact test that two methods diverge alike, each with so many seeds."""
    lost, most = np.add(ours, theirs), np.maximum(ours, theirs)
    p: Array = np.minimum(1.0, 2 * stats.hypergeom.sf(most - 1, 2 * np.asarray(seeds), lost, seeds))
    return p


def _first(counts: NDArray[np.int_], enough: NDArray[np.bool_], seeds: int) -> int | None:
    return int(counts[np.argmax(enough)]) - seeds if enough.any() else None


def examples_error(differences: Array) -> float:
    """The standard error of the mean difference that comes from the test set being finite.

    Args:
        differences: of the scores, (seeds, examples).

    Seeds and examples are crossed. The mean over the seeds of an example varies by the example and by the residual;
    the residual's part is in the spread over seeds already and is taken off (Owen 2007, the pigeonhole's variance).
    """
    seeds, examples = differences.shape
    if examples < 2:
        return 0.0
    columns = differences.mean(0)
    variance = float(columns.var(ddof=1)) / examples
    if seeds > 1:
        residuals = differences - differences.mean(1, keepdims=True) - columns + columns.mean()
        variance -= float(np.square(residuals).sum()) / ((seeds - 1) * (examples - 1) * seeds * examples)
    return math.sqrt(max(0.0, variance))
