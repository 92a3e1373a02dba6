"""What two methods' runs on the same seeds say of their difference.

The difference of two tuned methods is uncertain for three reasons, and its interval adds their half widths in
quadrature, each at its own quantile (Howe's rule, also called MOVER):

- *seeds*: Student's t on the differences paired by seed, since both methods start from the same weights and see the
  same batches. BCa bootstrap intervals of 5 to 8 differences cover too little (benchmarks/lab_power.py shows both);
- *tuning*: what another tuning of either method would have ended at, see :mod:`polyak.lab.tuning`;
- *examples*: the finite test set, where the score of every example is known.

One effective t quantile for all three would grow with the number of seeds, because the tuning part has few degrees of
freedom and weighs more the less the seeds do. Here more seeds can only narrow the interval.

Diverged runs are infinitely bad and have no mean: where there is one, the two methods are compared by ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from polyak.lab.evidence import Call
from polyak.lab.tuning import DEGREES, Array

FEWEST = 5
"""Seeds to ask for where there are too few to say anything, not even how many more it would take."""
MOST = 1000
"""Seeds beyond which no advice is given."""


class Comparison(Protocol):
    """One method against the reference: a difference, positive where the method is better, and its uncertainty."""

    @property
    def difference(self) -> float | None: ...

    def p_value(self) -> float: ...

    def interval(self, alpha: float) -> tuple[float, float] | None: ...

    def call(self, alpha: float, margin: float) -> Call: ...

    def more_seeds(self, alpha: float, margin: float) -> int | None: ...


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
        spread = float(np.std(self.differences, ddof=1))
        if spread <= 1e-12 * float(np.max(np.abs(self.differences))):
            spread = 0.0  # what is left is rounding: the differences are all the same
        upper = 1 - alpha / 2
        parts = (
            special.stdtrit(count - 1, upper) * spread / np.sqrt(count),
            special.stdtrit(DEGREES, upper) * self.tuning,
            special.ndtri(upper) * self.examples,
        )
        width: Array = np.sqrt(sum(part**2 for part in parts))
        return width

    def p_value(self) -> float:
        """The level at which the interval ends at 0, at least 1e-9; 1 with fewer than two seeds."""
        if len(self.differences) < 2 or not self.difference:
            return 1.0
        size = abs(self.difference)

        def beyond(exponent: float) -> float:
            return float(self.half_width(10**exponent)) - size

        return 10 ** float(optimize.brentq(beyond, -9, 0, xtol=1e-4)) if beyond(-9) > 0 else 1e-9

    def interval(self, alpha: float) -> tuple[float, float] | None:
        """The interval at level ``1 - alpha``; one seed has none."""
        if len(self.differences) < 2 or self.difference is None:
            return None
        half = float(self.half_width(alpha))
        return self.difference - half, self.difference + half

    def call(self, alpha: float, margin: float) -> Call:
        """Equivalent if the whole interval is within the margin, else better or worse if it leaves out 0."""
        found = self.interval(alpha)
        if found is None:
            return "unsettled"
        low, high = found
        if -margin <= low and high <= margin:
            return "equivalent"
        return "better" if low > 0 else "worse" if high < 0 else "unsettled"

    def more_seeds(self, alpha: float, margin: float) -> int | None:
        """How many seeds more would settle it if they were like these; ``None`` if not even a thousand would."""
        seeds = len(self.differences)
        if seeds < 2 or self.difference is None:
            return FEWEST - seeds
        counts = np.arange(seeds + 1, MOST + 1)
        half, size = self.half_width(alpha, counts), abs(self.difference)
        return _first(counts, (half < size) | (size + half <= margin), seeds)


@dataclass(frozen=True)
class Ranked:
    """Values some of which are infinitely bad, compared by ranks (Mann and Whitney's test).

    A method that diverged more often than the other is never called the better one, however good its other runs are.
    Of infinite differences there is no interval, and nothing is equivalent.
    """

    method: Sequence[float]
    reference: Sequence[float]

    @property
    def difference(self) -> float | None:
        """The median of the differences by seed, or ``None`` where that is infinite or both diverged on all."""
        pairs = zip(self.method, self.reference, strict=True)
        known = [one - other for one, other in pairs if math.isfinite(one) or math.isfinite(other)]
        middle = float(np.median(known)) if known else math.inf
        return middle if math.isfinite(middle) else None

    @property
    def _excess(self) -> float:
        """By how much the chance to win exceeds one half, over all pairs of a run of one and a run of the other."""
        wins = [(one > other) - (one < other) for one in self.method for other in self.reference]
        return float(np.mean(wins)) / 2

    def p_value(self) -> float:
        """Two-sided."""
        if self._call() == "unsettled":
            return 1.0
        return float(stats.mannwhitneyu(self.method, self.reference, method="exact").pvalue)

    def interval(self, alpha: float) -> None:
        """There is none."""

    def call(self, alpha: float, margin: float) -> Call:
        """Better or worse if the test says so."""
        return self._call() if self.p_value() <= alpha else "unsettled"

    def _call(self) -> Call:
        """What the ranks lean to, unless the number of diverged runs leans the other way."""
        lost = sum(map(math.isinf, self.method)) - sum(map(math.isinf, self.reference))
        if self._excess > 0 >= lost:
            return "better"
        return "worse" if self._excess < 0 <= lost else "unsettled"

    def more_seeds(self, alpha: float, margin: float) -> int | None:
        """How many seeds more would settle it, by the normal approximation; ``None`` if not even a thousand would."""
        seeds = len(self.method)
        counts = np.arange(seeds + 1, MOST + 1)
        needed = special.ndtri(1 - alpha / 2) * np.sqrt((2 * counts + 1) / 12)
        return None if self._call() == "unsettled" else _first(counts, abs(self._excess) * counts > needed, seeds)


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
