"""ALR-MAG and ALR-SMAG: Polyak's step size along a heavy ball of gradients."""

from __future__ import annotations

from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.methods._alr import ALR, PAPER
from polyak.optim.vocabulary.balls import heavy_ball
from polyak.optim.vocabulary.polyak_step import polyak_step


class ALRMAG(ALR):
    """ALR-MAG, capped ALR-SMAG, Polyak's step size along a heavy ball (Wang et al., arXiv:2305.12939). Needs the loss.

    ::

        d <- momentum * d + g
        eta <- min(lr, max(0, f - lb) / (c * |d|^2))
        p <- p * (1 - eta * weight_decay) - eta * d

    Polyak's own step size where momentum is 0. A step that would go uphill, below ``lb``, is none.

    One step size serves the whole model, with ``lr`` as its cap. The loss is that which the gradients are of, the
    mean over accumulated batches, unscaled; ``help(ALRMAG.__base__)`` says more of both, and of ``c``.

    It is held to an independent implementation, which does not keep eta from falling below 0.

    Raises:
        ValueError: an argument outside what is allowed.
    """

    slug = "alr_mag"
    paper = PAPER
    vectors = ["alr-smag"]
    evidence = "independent code"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(heavy_ball(), polyak_step())
