"""Cautious Adan."""

from __future__ import annotations

from polyak.declare import Paper
from polyak.optim.engine.rule import Options, Rule
from polyak.optim.methods.adan import Adan, adan
from polyak.optim.vocabulary.signs import Masked, cautious


class CAdan(Adan):
    """Cautious Adan (arXiv:2411.16085; timm's form): of Adan's direction only the first-moment part is masked.

    ::

        d <- g - g_prev (0 at the first step)
        m <- b1 * m + (1 - b1) * g
        v <- b2 * v + (1 - b2) * d
        n <- b3 * n + (1 - b3) * (g + b2 * d)^2
        m^ <- m^ * [m * g > 0] / mean([m * g > 0])
        u <- (m^ + b2 * v^) / (sqrt(n^) + eps)   (^: bias corrected)
        p <- (p - lr * u) / (1 + lr * weight_decay)

    A mask at the end of the chain is another method: ``Optimizer(params, chain(adan(), cautious(), descend()))``.
    """

    slug = "cadan"
    family = "adaptive"
    paper = Paper("Cautious Optimizers: Improving Training with One Line of Code", 2024, "2411.16085")
    vectors = ["cadan"]
    evidence = "independent code"

    mask_scale: Masked = "mean"

    @classmethod
    def direction(cls, options: Options) -> Rule:
        """Adan's, masked behind its first moment."""
        return adan().at("exp_avg", cautious(options["mask_scale"]))
