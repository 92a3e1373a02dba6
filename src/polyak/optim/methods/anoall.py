"""Anoall: Ano with the plain average of all gradients."""

from __future__ import annotations

from polyak.declare import Paper
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.methods.anosqrt import Anosqrt
from polyak.optim.vocabulary.ano import ano
from polyak.optim.vocabulary.weight import decay, descend


class Anoall(Anosqrt):
    """Ano with ``b1(t) = 1 - 1/t``, an ablation of its paper (arXiv:2508.18258).

    ::

        m <- m + (g - m) / t   (the mean of all gradients so far)
        v <- b2 * v + (1 - b2) * sign(g^2 - v) * g^2
        p <- p * (1 - lr * weight_decay) - lr * sign(m) * |g| / sqrt(v + eps)

    As in the authors' code, v is not bias corrected. Differs from it: there is no ``betas[0]``, which has no effect
    there.
    """

    slug = "anoall"
    family = "adaptive"
    paper = Paper("Ano: Faster is Better in Noisy Landscape", 2025, "2508.18258")
    vectors = ["anoall"]

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(
            decay("decoupled"), ano("all", correct_bias=False, second_moment=options["second_moment"]), descend()
        )
