"""MoMo: momentum with a step size from a model of the loss."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Momentum, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.model_step import Cap, DebiasModel, EstimateBound, LowerBound, model_momentum
from polyak.optim.vocabulary.weight import decay, subtract


class MoMo(Method):
    """MoMo, momentum with a model-based step size (Schaipp et al., arXiv:2305.07583). It needs the loss.

    ::

        d, f, gamma <- averages of g, the loss and <g, p>, all with beta
        tau <- min(lr, max(0, w * (f - lb) + <d, p> - w * gamma) / |d|^2),  w = 1 + lr * weight_decay
        p <- (p - tau * d) / w

    One step size for the whole model: sums go over all tensors of all groups, ``tau`` differs between groups as their
    lr and decay do. lr is a cap; the authors advise a constant 1. ``use_fstar`` (MoMo*) estimates the lower bound, and
    ``lb`` is its least; without it lb = 0 suits most losses. With ``bias_correction`` the averages start at 0, cap and
    bound become lr / rho and rho * lb, rho = 1 - beta^t.

    The loss, ``step(loss=...)``, a closure or ``set_loss(...)``, is that which the gradients are of: the mean over
    accumulated batches, unscaled. What changes gradients before the step, such as clipping, makes the model wrong.
    tau, tau without its cap and the bound are in ``diagnostics()``, averages and bound in ``param_groups``.

    Differs from the authors' code: the averages of the loss are saved; the bound of MoMo* moves once a step, as the
    first group says, not once a group; no step where |d| is 0; a parameter without gradient is left out.

    Raises:
        ValueError: an argument outside what is allowed, or ``beta``, ``lb``, ``bias_correction`` or ``use_fstar`` that
            are not the same in all groups.
    """

    slug = "momo"
    family = "step size"
    paper = Paper("MoMo: Momentum Models for Adaptive Learning Rates", 2023, "2305.07583")
    vectors = ["momo", "momo-bias", "momo-star", "momo-truncated"]
    one_for_all = ("beta", "lb", "bias_correction", "use_fstar")

    lr: Annotated[Cap, Range(1e-2, 1e1)] = 1.0
    weight_decay: Annotated[WeightDecay, Range(1e-6, 1e-2), "proximal weight decay"] = 0.0
    beta: Annotated[Momentum, "retention of the averages"] = 0.9
    lb: LowerBound = 0.0
    bias_correction: DebiasModel = False
    use_fstar: EstimateBound = False

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(model_momentum(options["bias_correction"]), subtract(), decay("proximal"))
