"""ALR-MAG and ALR-SMAG: Polyak's step size along a heavy ball of gradients."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Momentum, Paper, Range
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.balls import heavy_ball
from polyak.optim.vocabulary.polyak_step import AdaptiveDecay, Caution, LargestStep, LeastLoss, polyak_step


class ALRMAG(Method):
    """ALR-MAG, capped ALR-SMAG, Polyak's step size along a heavy ball (Wang et al., arXiv:2305.12939). Needs the loss.

    ::

        d <- momentum * d + g
        eta <- min(lr, max(0, f - lb) / (c * |d|^2))
        p <- p * (1 - eta * weight_decay) - eta * d

    Polyak's own step size where momentum is 0. A step that would go uphill, below ``lb``, is none.

    The step size is one for the whole model: sums go over all tensors of all groups. ``lr`` is its cap; the rate of
    plain SGD, with its schedule, does, and infinity is the deterministic form. ``c`` of 0.5 to 1 is usual for networks.
    The loss, ``step(loss=...)``, a closure or ``set_loss(...)``, is that which the gradients are of: the mean over
    accumulated batches, unscaled. eta, and what it is without its cap, are in ``diagnostics()``.

    There is no code of the authors. It is held to an independent implementation, which does not keep eta
    from falling below 0.

    Raises:
        ValueError: an argument outside what is allowed.
    """

    slug = "alr_mag"
    family = "step size"
    paper = Paper("Generalized Polyak Step Size for First Order Optimization with Momentum", 2023, "2305.12939")
    vectors = ["alr-smag"]
    evidence = "independent code"

    lr: Annotated[LargestStep, Range(1e-3, 1e1)] = 0.1
    momentum: Momentum = 0.9
    lb: LeastLoss = 0.0
    c: Caution = 1.0
    weight_decay: Annotated[AdaptiveDecay, Range(1e-6, 1e-2)] = 0.0

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(heavy_ball(), polyak_step())
