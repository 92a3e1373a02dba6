"""ALR-HB and ALR-SHB: the heavy ball with Polyak's step size."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Momentum, Paper, Range
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.polyak_step import AdaptiveDecay, Caution, LargestStep, LeastLoss, polyak_step


class ALRHB(Method):
    """ALR-HB, capped ALR-SHB, the heavy ball with Polyak's step size (Wang et al., arXiv:2305.12939). Needs the loss.

    ::

        s <- x_k - x_(k-1)   (0 at first)
        eta <- clip(((f - lb) / c + momentum * <g, s>) / |g|^2, 0, lr)
        p <- p * (1 - eta * weight_decay) - eta * g + momentum * s

    Where the ball goes downhill by itself, <g, s> < 0, the step is shorter, which damps the usual oscillation. ``v2``
    doubles the gap f - lb, for smooth problems. Polyak's own step size where momentum is 0.

    The step size is one for the whole model: sums go over all tensors of all groups. ``lr`` is its cap; the rate of
    plain SGD, with its schedule, does, and infinity is the deterministic form. ``c`` of 0.5 to 1 is usual for networks.
    The loss, ``step(loss=...)``, a closure or ``set_loss(...)``, is that which the gradients are of: the mean over
    accumulated batches, unscaled. eta, and what it is without its cap, are in ``diagnostics()``.

    There is no code of the authors. The equations are derived as the paper derives them; of v2, and of the
    place of ``c``, we are not sure.

    Raises:
        ValueError: an argument outside what is allowed.
    """

    slug = "alr_hb"
    family = "step size"
    paper = Paper("Generalized Polyak Step Size for First Order Optimization with Momentum", 2023, "2305.12939")
    vectors = ["alr-hb-card", "alr-shb-card"]
    evidence = "own transcription"

    lr: Annotated[LargestStep, Range(1e-3, 1e1)] = 0.1
    momentum: Momentum = 0.9
    lb: LeastLoss = 0.0
    c: Caution = 1.0
    weight_decay: Annotated[AdaptiveDecay, Range(1e-6, 1e-2)] = 0.0
    v2: Annotated[bool, "twice the gap between the loss and lb"] = False

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(polyak_step("heavy_ball", options["v2"]))
