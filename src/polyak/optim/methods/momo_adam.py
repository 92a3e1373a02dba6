"""MoMo-Adam: Adam with a step size from a model of the loss."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Betas, Eps, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.model_step import Cap, EstimateBound, LowerBound, model_adam
from polyak.optim.vocabulary.weight import decay, subtract


class MoMoAdam(Method):
    """MoMo-Adam, Adam with a model-based step size (Schaipp et al., arXiv:2305.07583). It needs the loss.

    ::

        d, f, gamma <- averages of g, the loss and <g, p>, all with b1, from 0; v <- that of g^2 with b2
        D <- sqrt(v / (1 - b2^t)) + eps;  rho <- 1 - b1^t;  w = 1 + lr * weight_decay
        tau <- min(lr / rho, max(0, w * (f - rho * lb) + <d, p> - w * gamma) / <d, d / D>)
        p <- (p - tau * d / D) / w

    Where the cap holds, this is Adam. ``divide=False`` decays as AdamW does, ``p * (1 - lr * weight_decay)`` before the
    step. lr, loss, lower bound, groups and what is saved: see :class:`MoMo`. The authors advise a constant lr of 1e-2
    or a little less.

    Differs from the authors' code: as :class:`MoMo`; ``v`` of a tensor is corrected by its own number of steps.

    Raises:
        ValueError: an argument outside what is allowed, or ``betas``, ``lb`` or ``use_fstar`` that are not the same in
            all groups.
    """

    slug = "momo_adam"
    family = "step size"
    paper = Paper("MoMo: Momentum Models for Adaptive Learning Rates", 2023, "2305.07583")
    vectors = ["momo-adam", "momo-adam-adamw", "momo-adam-star", "momo-adam-truncated"]
    one_for_all = ("betas", "lb", "use_fstar")

    lr: Annotated[Cap, Range(1e-4, 1e-1)] = 1e-2
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1), "proximal or decoupled weight decay"] = 0.0
    lb: LowerBound = 0.0
    divide: Annotated[bool, "proximal weight decay, behind the step; or decoupled, before it"] = True
    use_fstar: EstimateBound = False

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        if options["divide"]:
            return chain(model_adam(), subtract(), decay("proximal"))
        return chain(model_adam(), decay("decoupled"), subtract())
