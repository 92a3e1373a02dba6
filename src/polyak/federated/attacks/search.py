"""A line search without gradients."""

from __future__ import annotations

from collections.abc import Callable


def largest(
    value: Callable[[float], float], evaluations: int, step: float, shrink: float, two_sided: bool, start: float
) -> float:
    """A number at or above zero where a function is large, found with some evaluations of it.

    The step doubles while the value grows. Then it shrinks at each try: beyond the best, or with ``two_sided`` away
    from the last try, upwards from below the best and else downwards, halfway back while that is below zero.
    """
    best, most = start, value(start)
    tried, growing = start, True
    for _ in range(evaluations - 1):
        if growing or not two_sided:
            tried = best + step
        elif tried < best:
            tried += step
        else:
            last, tried = tried, tried - step
            while tried < 0:
                tried = (tried + last) / 2
        found = value(tried)
        better = found > most
        if better:
            best, most = tried, found
        growing = growing and better
        step *= 2 if growing else shrink
    return best
