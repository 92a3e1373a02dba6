"""The vocabulary: rules to chain. One family a file."""

from polyak.optim.vocabulary.adaptive import adabelief, adam, adan, adatam, ademamix
from polyak.optim.vocabulary.balls import heavy_ball, momentum_ema, torque_aware
from polyak.optim.vocabulary.matrices import orthogonalize
from polyak.optim.vocabulary.scale_free import clip_norm, project
from polyak.optim.vocabulary.signs import cautious, grams, lion
from polyak.optim.vocabulary.weight import decay, descend

__all__ = [
    "adabelief",
    "adam",
    "adan",
    "adatam",
    "ademamix",
    "cautious",
    "clip_norm",
    "decay",
    "descend",
    "grams",
    "heavy_ball",
    "lion",
    "momentum_ema",
    "orthogonalize",
    "project",
    "torque_aware",
]
