"""The few statistics of a report, all free of assumptions about distributions.

Everything is defined for infinite values too, because a diverged run counts as infinitely bad.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A median, an interval for the median of the distribution, and the probability that the interval covers it."""

    median: float
    low: float
    high: float
    coverage: float


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones."""
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if low == high else (low + high) / 2


def order_interval(values: Sequence[float]) -> Interval:
    """Median and order-statistic interval: the k-th smallest to the k-th largest value.

    k is the largest for which the interval covers the median of the distribution with :data:`CONFIDENCE`. With fewer
    than six values even the smallest to the largest does not; that is then the interval, at its smaller coverage
    ``1 - 2 ** (1 - n)``.
    """
    ordered = sorted(values)
    n, k = len(ordered), 1
    while 2 * (k + 1) <= n and _coverage(n, k + 1) >= CONFIDENCE:
        k += 1
    return Interval(median(ordered), ordered[k - 1], ordered[n - k], _coverage(n, k))


def _coverage(n: int, k: int) -> float:
    """The chance that at least ``k`` of ``n`` values lie on each side of the median."""
    return max(0.0, 1 - 2 * sum(math.comb(n, i) for i in range(k)) / float(2**n))


def performance_profile(costs: Mapping[str, Sequence[float]]) -> dict[str, list[tuple[float, float]]]:
    """Dolan and Moré's profiles: for each method the share of problems it solves within ``ratio`` of the best.

    Args:
        costs: for each method its cost on every problem, infinite where it was not solved.

    Returns:
        For each method the corners ``(ratio, share)`` of its step function, from ratio 1 on.
    """
    best = [min(column) for column in zip(*costs.values(), strict=True)]
    profiles: dict[str, list[tuple[float, float]]] = {}
    for method, row in costs.items():
        ratios = sorted(cost / least for cost, least in zip(row, best, strict=True) if math.isfinite(cost))
        corners = [(1.0, 0.0), *((ratio, (i + 1) / len(row)) for i, ratio in enumerate(ratios))]
        profiles[method] = list(dict(corners).items())
    return profiles
