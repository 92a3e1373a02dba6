"""Ano: the direction from momentum, the size from the present gradient."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Choice, Lr, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.ano import Betas, EpsInside, YogiForm, ano
from polyak.optim.vocabulary.weight import decay, descend


class Ano(Method):
    """Ano (arXiv:2508.18258): the sign of momentum with the size of the present gradient.

    ::

        m <- b1 * m + (1 - b1) * g
        v <- b2 * v + (1 - b2) * sign(g^2 - v) * g^2
        p <- p * (1 - lr * weight_decay) - lr * sign(m) * |g| / sqrt(v / (1 - b2^t) + eps)

    The mirror image of Grams. A coordinate with zero gradient does not move. Steps are not averaged in size, so the lr
    is smaller than Adam's. Below ``b2 = 0.5`` v could become negative.

    Yogi's second moment decays by b2 in the authors' code and the paper's last version; ``second_moment="yogi"`` is the
    first version's, which does not: ``v <- v + (1 - b2) * sign(g^2 - v) * g^2``. With half-precision weights
    the memories are float32.
    """

    slug = "ano"
    family = "adaptive"
    paper = Paper("Ano: Faster is Better in Noisy Landscape", 2025, "2508.18258")
    vectors = ["ano"]

    lr: Annotated[Lr, Range(1e-5, 3e-2)] = 1e-4
    betas: Annotated[Betas, Choice(((0.92, 0.99), (0.9, 0.999)))] = (0.92, 0.99)
    eps: EpsInside = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0
    second_moment: YogiForm = "decayed"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(decay("decoupled"), ano(second_moment=options["second_moment"]), descend())
