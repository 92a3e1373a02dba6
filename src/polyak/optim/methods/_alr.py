"""What the ALR methods share: a step size that is read from the loss."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Momentum, Paper, Range
from polyak.optim.method import Method
from polyak.optim.vocabulary.polyak_step import AdaptiveDecay, Caution, LargestStep, LeastLoss

PAPER = Paper("Generalized Polyak Step Size for First Order Optimization with Momentum", 2023, "2305.12939")


class ALR(Method):
    """Base of the methods with Polyak's step size and momentum (Wang et al., arXiv:2305.12939).

    The step size is one for the whole model: sums go over all tensors of all groups. ``lr`` is its cap; the rate of
    plain SGD, with its schedule, does, and infinity is the deterministic form. ``c`` of 0.5 to 1 is usual for networks.
    The loss, ``step(loss=...)``, a closure or ``set_loss(...)``, is that which the gradients are of: the mean over
    accumulated batches, unscaled. eta, and what it is without its cap, are in ``diagnostics()``.

    There is no code of the authors.
    """

    family = "step size"

    lr: Annotated[LargestStep, Range(1e-3, 1e1)] = 0.1
    momentum: Momentum = 0.9
    lb: LeastLoss = 0.0
    c: Caution = 1.0
    weight_decay: Annotated[AdaptiveDecay, Range(1e-6, 1e-2)] = 0.0
