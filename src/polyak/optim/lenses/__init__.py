"""Gradient-based learning as composition of lenses (Cruttwell et al., arXiv:2103.01931), small and exact.

A lens is a map with a way back; models, losses and learning rates are lenses with parameters, and an optimiser is a
lens that a parameter is seen through. Nesterov's momentum differs from the heavy ball in what it reads out, alone.
Written for clarity: one example a step, the forward map evaluated again for every layer behind it.
"""

from polyak.optim.lenses.bridge import LensOptimizer, from_optimizer
from polyak.optim.lenses.learner import Learner, cross_entropy, learning_rate, squared_error
from polyak.optim.lenses.lens import (
    Lens,
    ParaLens,
    activation,
    associate_left,
    associate_right,
    bias,
    dense,
    differentiable,
    first,
    from_module,
    identity,
    layer,
    linear,
    second,
    swap,
    without_parameter,
)
from polyak.optim.lenses.optimisers import (
    Optimiser,
    adagrad,
    adam,
    ascent,
    ascent_momentum,
    exclusive_or,
    gradient_descent,
    momentum,
    nesterov,
)
from polyak.optim.lenses.trees import Tree, tree_map

__all__ = [
    "Learner", "Lens", "LensOptimizer", "Optimiser", "ParaLens", "Tree", "activation", "adagrad", "adam", "ascent",
    "ascent_momentum", "associate_left", "associate_right", "bias", "cross_entropy", "dense", "differentiable",
    "exclusive_or", "first", "from_module", "from_optimizer", "gradient_descent", "identity", "layer", "learning_rate",
    "linear", "momentum", "nesterov", "second", "squared_error", "swap", "tree_map", "without_parameter",
]  # fmt: skip
