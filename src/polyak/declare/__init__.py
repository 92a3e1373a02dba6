"""What a method says about itself: hyperparameters, ranges, search space, paper."""

from polyak.declare.hypers import (
    HALF_OPEN_UNIT,
    NON_NEGATIVE,
    POSITIVE,
    UNIT,
    Choice,
    Described,
    Hyper,
    Interval,
    Paper,
    Range,
    SearchSpace,
)

__all__ = [
    "HALF_OPEN_UNIT",
    "NON_NEGATIVE",
    "POSITIVE",
    "UNIT",
    "Choice",
    "Described",
    "Hyper",
    "Interval",
    "Paper",
    "Range",
    "SearchSpace",
]
