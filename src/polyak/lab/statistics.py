"""The few statistics of a report, all free of assumptions about distributions.

Everything is defined for infinite values too, because a diverged run counts as infinitely bad.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

SCORED = 4.0
"""The multiple of the best method's cost up to which a profile is scored, as in AlgoPerf."""


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones."""
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if low == high else (low + high) / 2


def time_to_target(times: Sequence[float | None]) -> float:
    """The cost of reaching the target, by AlgoPerf's rule: the median over the runs.

    Args:
        times: steps or seconds of every run, ``None`` where it did not reach the target, which counts as infinite.

    Returns:
        The median: infinite unless more than half of the runs reached the target, or if there are none.
    """
    return median([math.inf if time is None else time for time in times]) if times else math.inf


def performance_profile(costs: Mapping[str, Sequence[float]]) -> dict[str, list[tuple[float, float]]]:
    """Dolan and Moré's profiles: for each method the share of problems it solves within ``ratio`` of the best.

    A problem that nobody solved counts as one that a method did not solve, as in their paper.

    Args:
        costs: for each method its cost on every problem, infinite where it was not solved.

    Returns:
        For each method the corners ``(ratio, share)`` of its step function, from ratio 1 on.
    """
    best = [min(column) for column in zip(*costs.values(), strict=True)]
    profiles: dict[str, list[tuple[float, float]]] = {}
    for method, row in costs.items():
        # Of costs of 0 each is 1 times the best, and everything else is infinitely many times it.
        ratios = sorted(
            1.0 if cost == least else cost / least if least else math.inf
            for cost, least in zip(row, best, strict=True)
            if math.isfinite(cost)
        )
        corners = [
            (1.0, 0.0),
            *((ratio, (i + 1) / len(row)) for i, ratio in enumerate(ratios) if math.isfinite(ratio)),
        ]
        profiles[method] = list(dict(corners).items())
    return profiles


def profile_score(profile: Sequence[tuple[float, float]], largest: float = SCORED) -> float:
    """AlgoPerf's score: the area under a profile from ratio 1 to ``largest``, over that width; between 0 and 1."""
    ends = [ratio for ratio, _ in profile[1:]] + [math.inf]
    area = sum(
        share * (min(end, largest) - min(start, largest)) for (start, share), end in zip(profile, ends, strict=True)
    )
    return area / (largest - 1)
