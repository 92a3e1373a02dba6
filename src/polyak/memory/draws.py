"""Numbers that need no generator: the same seed and place give the same number, at any time and on any rank."""

from __future__ import annotations

import random

from polyak.memory._check import require


def uniform_at(seed: int, place: int) -> float:
    """A number in [0, 1) for a place in the sequence that a seed stands for.

    The sequence needs no state: who resumes a run at a step, or runs on another rank, finds the numbers of that step.

    Args:
        seed: which sequence, >= 0.
        place: where in it, in [0, 2**64).

    Raises:
        ValueError: if an argument is out of range.
    """
    require(seed >= 0, "seed", seed, "at least 0")
    require(0 <= place < 2**64, "place", place, "in [0, 2**64)")
    return random.Random((seed << 64) + place).random()
