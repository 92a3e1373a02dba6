"""Grams: the sign of the gradient with the magnitude of Adam."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from polyak.declare import Betas, Eps, Lr, Paper, Range, WeightDecay
from polyak.memory.geometry import agreement, sign_times_magnitude
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.adaptive import CorrectBias, EpsPlace, adam
from polyak.optim.vocabulary.weight import decay, descend


@factory
def grams() -> Rule:
    """The sign of the present gradient with the magnitude of the direction: ``sign(g) * |u|`` (arXiv:2412.17107)."""

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        c.note("mask_share", agreement(x.u, x.g))
        return x.but(u=sign_times_magnitude(x.g, x.u)), {}

    why = "of a memory that shows in the signs alone nothing is left when they are those of the gradient"
    return Rule("grams", update, reads_memory=True, pointless_behind=(("sign_memory", why),))


class Grams(Method):
    """Gradient descent with adaptive momentum scaling (Cao et al., arXiv:2412.17107).

    ::

        p <- p * (1 - lr * weight_decay) - lr * sign(g) * |m^| / (sqrt(v^) + eps)   (m, v as in Adam)

    A coordinate with zero gradient does not move. Measured on small problems it is worse than AdamW; do not expect a
    gain without a comparison. ``eps_form="before"`` is the authors' code, "after" the paper and torch.

    Differs from the authors' code: ``p.grad`` is left alone.
    """

    slug = "grams"
    family = "adaptive"
    paper = Paper("Grams: Gradient Descent with Adaptive Momentum Scaling", 2024, "2412.17107")
    vectors = ["grams", "grams-nobias"]

    lr: Annotated[Lr, Range(1e-4, 3e-2)] = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-6
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0
    correct_bias: CorrectBias = True
    eps_form: EpsPlace = "before"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        base = adam(eps_form=options["eps_form"], correct_bias=options["correct_bias"])
        return chain(decay("decoupled"), base, grams(), descend())
