"""ALR-HB and ALR-SHB: the heavy ball with Polyak's step size."""

from __future__ import annotations

from typing import Annotated

from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.methods._alr import ALR, PAPER
from polyak.optim.vocabulary.polyak_step import polyak_step


class ALRHB(ALR):
    """ALR-HB, capped ALR-SHB, the heavy ball with Polyak's step size (Wang et al., arXiv:2305.12939). Needs the loss.

    ::

        s <- x_k - x_(k-1)   (0 at first)
        eta <- clip(((f - lb) / c + momentum * <g, s>) / |g|^2, 0, lr)
        p <- p * (1 - eta * weight_decay) - eta * g + momentum * s

    Where the ball goes downhill by itself, <g, s> < 0, the step is shorter, which damps the usual oscillation. ``v2``
    doubles the gap f - lb, for smooth problems. Polyak's own step size where momentum is 0.

    One step size serves the whole model, with ``lr`` as its cap. The loss is that which the gradients are of, the
    mean over accumulated batches, unscaled; ``help(ALRHB.__base__)`` says more of both, and of ``c``.

    The equations are derived as the paper derives them; of v2, and of the place of ``c``, we are not sure.

    Raises:
        ValueError: an argument outside what is allowed.
    """

    slug = "alr_hb"
    paper = PAPER
    vectors = ["alr-hb-card", "alr-shb-card"]
    evidence = "own transcription"

    v2: Annotated[bool, "twice the gap between the loss and lb"] = False

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(polyak_step("heavy_ball", options["v2"]))
