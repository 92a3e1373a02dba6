"""What a method says about itself: hyperparameters, ranges, search space, paper.

A class derived from :class:`Declared` writes each argument once, as an annotated field; optimizers do (see
:class:`polyak.optim.Method`), and whatever else has published hyperparameters can.
"""

from polyak.declare.declared import Declared, Field, literal_block
from polyak.declare.fields import (
    STATIC,
    STATIC_IF_ZERO,
    Argument,
    Betas,
    Betas3,
    Dampening,
    Eps,
    Fills,
    Lr,
    MaxGradNorm,
    Momentum,
    Nesterov,
    Static,
    WeightDecay,
    fills,
    hyper,
)
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
    "STATIC",
    "STATIC_IF_ZERO",
    "UNIT",
    "Argument",
    "Betas",
    "Betas3",
    "Choice",
    "Dampening",
    "Declared",
    "Described",
    "Eps",
    "Field",
    "Fills",
    "Hyper",
    "Interval",
    "Lr",
    "MaxGradNorm",
    "Momentum",
    "Nesterov",
    "Paper",
    "Range",
    "SearchSpace",
    "Static",
    "WeightDecay",
    "fills",
    "hyper",
    "literal_block",
]
