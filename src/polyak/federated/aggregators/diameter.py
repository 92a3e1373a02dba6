"""The subset of points whose largest distance is smallest."""

from __future__ import annotations

from collections.abc import Sequence


def least_diameter(distances: Sequence[Sequence[float]], count: int) -> list[int]:
    """The ``count`` points of smallest diameter; of equal sets the lexicographically first.

    A diameter t is reached if all pairs farther apart can be broken by taking n - count points away, a vertex cover of
    that size: found by branching on one point, which goes or whose far points all go.
    """
    n = len(distances)
    lengths = sorted({0.0, *(d for row in distances for d in row)})
    low, high = 0, len(lengths) - 1
    while low < high:
        middle = (low + high) // 2
        if _breakable(_far(distances, lengths[middle]), n - count):
            high = middle
        else:
            low = middle + 1
    return _first(_far(distances, lengths[low]), count)


def _far(distances: Sequence[Sequence[float]], limit: float) -> list[int]:
    """For each point the bits of those farther away than the limit."""
    return [sum(1 << j for j, d in enumerate(row) if d > limit) for row in distances]


def _breakable(far: list[int], budget: int) -> bool:
    worst = max(range(len(far)), key=lambda i: far[i].bit_count())
    degree = far[worst].bit_count()
    if degree == 0:
        return True
    if budget <= 0 or sum(bits.bit_count() for bits in far) > 2 * budget * degree:
        return False
    if _breakable(_without(far, 1 << worst), budget - 1):
        return True
    return degree > 1 and degree <= budget and _breakable(_without(far, far[worst]), budget - degree)


def _without(far: list[int], gone: int) -> list[int]:
    return [0 if gone >> i & 1 else bits & ~gone for i, bits in enumerate(far)]


def _first(far: list[int], count: int) -> list[int]:
    """Keep each point in turn if the rest can still be completed."""
    kept: list[int] = []
    gone = 0
    for i in range(len(far)):
        if len(kept) == count:
            break
        if gone >> i & 1:
            continue
        trial = gone | far[i]
        left = len(far) - count - trial.bit_count()
        if left >= 0 and _breakable(_without(far, trial), left):
            kept.append(i)
            gone = trial
        else:
            gone |= 1 << i
    return kept
