"""Anolog: Ano without a beta1 to tune."""

from __future__ import annotations

from typing import Annotated, Literal

from polyak.declare import Paper
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.methods.anosqrt import Anosqrt
from polyak.optim.vocabulary.ano import ano
from polyak.optim.vocabulary.weight import decay, descend


class Anolog(Anosqrt):
    """Anolog (arXiv:2508.18258): Ano whose memory grows with the logarithm of time.

    ::

        m <- m + (g - m) / ln(max(2, t))
        v <- b2 * v + (1 - b2) * sign(g^2 - v) * g^2
        p <- p * (1 - lr * weight_decay) - lr * sign(m) * |g| / sqrt(v + eps)

    As in the authors' code, v is not bias corrected, and ``b1(t) = 1 - 1/ln(max(2, t))`` is negative in the first two
    steps; ``retention="log_shifted"`` is the paper's ``1 - 1/ln(t + 2)``. Differs from the authors' code: there is no
    ``betas[0]``, which has no effect there.
    """

    slug = "anolog"
    family = "adaptive"
    paper = Paper("Ano: Faster is Better in Noisy Landscape", 2025, "2508.18258")
    vectors = ["anolog"]

    retention: Annotated[Literal["log", "log_shifted"], "b1(t) of the authors' code, or of the paper"] = "log"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(
            decay("decoupled"),
            ano(options["retention"], correct_bias=False, second_moment=options["second_moment"]),
            descend(),
        )
