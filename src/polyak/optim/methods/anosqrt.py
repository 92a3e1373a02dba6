"""Anosqrt: Ano with a memory that grows as the square root of time."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Lr, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.ano import Beta2, EpsInside, YogiForm, ano
from polyak.optim.vocabulary.weight import decay, descend


class Anosqrt(Method):
    """Ano with ``b1(t) = 1 - 1/sqrt(t)``, an ablation of its paper (arXiv:2508.18258).

    ::

        m <- m + (g - m) / sqrt(t)
        v <- b2 * v + (1 - b2) * sign(g^2 - v) * g^2
        p <- p * (1 - lr * weight_decay) - lr * sign(m) * |g| / sqrt(v + eps)

    As in the authors' code, v is not bias corrected. Differs from it: there is no ``betas[0]``, which has no effect
    there.
    """

    slug = "anosqrt"
    family = "adaptive"
    paper = Paper("Ano: Faster is Better in Noisy Landscape", 2025, "2508.18258")
    vectors = ["anosqrt"]

    lr: Annotated[Lr, Range(1e-5, 3e-2)] = 1e-4
    beta2: Beta2 = 0.999
    eps: EpsInside = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0
    second_moment: YogiForm = "decayed"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(
            decay("decoupled"), ano("sqrt", correct_bias=False, second_moment=options["second_moment"]), descend()
        )
