"""The step of MoMo: an affine model of the loss, cut off at a lower bound, says how far a step along a memory goes."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from polyak.declare import Betas, Eps, Hyper, Lr, Momentum, WeightDecay, hyper
from polyak.memory.averages import debias, ema
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, Shared, Slot, factory

LowerBound = Annotated[float, "lower bound of the loss"]
EstimateBound = Annotated[bool, "MoMo*: raise the lower bound as far as the model knows better; lb is its least"]
DebiasModel = Annotated[bool, "averages start at zero and are corrected; or else at the first gradient and loss"]
Cap = Annotated[Lr, "largest step size; any schedule may drive it"]

MODEL = (
    Shared("loss_avg", "average of the loss"),
    Shared("inner_avg", "average of <gradient, weights>"),
    Shared("model_steps", "steps of the averages so far"),
    Shared("lower_bound", "lower bound of the loss, as it is estimated"),
)


def coefficients(h: Options, beta: Any, correct: bool) -> dict[str, Any]:
    """What :func:`model_step` reads of a group."""
    shrinks = 1 + h["lr"] * h["weight_decay"]
    flags = {"correct": float(correct), "star": float(h["use_fstar"])}
    return {"lr": h["lr"], "shrinks": shrinks, "lb": h["lb"], "beta": beta, "rate": 1 - beta, **flags}


def begun(s: Any, memory: Tensor, start: Tensor) -> Tensor:
    """The memory, or in the first step of the model what it starts from: it must be as old as the shared averages."""
    return torch.where(s.model_steps > 0, memory, start)


def model_step(sums: tuple[Tensor, ...], s: Any, c: Any) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Tensor]]:
    """Step size ``tau``, the same without its cap, and the lower bound, from ``<g, x>``, ``<d, x>`` and ``<d, d / D>``.

    ``tau = min(lr / rho, max(0, w * (f - rho * lb) + <d, x> - w * gamma) / <d, d / D>)`` with the averages ``f`` of the
    loss and ``gamma`` of ``<g, x>``, ``w = 1 + lr * weight_decay``. Averages and bound are those of the first group.
    """
    inner, along, size = sums
    first = c.lead
    is_first, corrected, star = s.model_steps == 0, first.correct > 0, first.star > 0
    steps = s.model_steps + 1
    old = torch.where(is_first, torch.where(corrected, 0.0, torch.stack([c.loss, inner])), torch.stack(
        [s.loss_avg, s.inner_avg]))  # fmt: skip
    loss_avg, inner_avg = ema(old, torch.stack([c.loss, inner]), first.rate).unbind()
    rho = torch.where(corrected, 1 - first.beta**steps, 1.0)

    bound = torch.where(star & ~is_first, s.lower_bound, first.lb)
    cap = first.shrinks * (loss_avg - inner_avg) + along
    lowered = torch.maximum(cap / (2 * first.shrinks * rho), first.lb)
    bound = torch.where(star & (cap < first.shrinks * rho * bound), lowered, bound)

    gap = (c.shrinks * (loss_avg - rho * bound - inner_avg) + along).clamp(min=0)
    uncapped = torch.where(size > 0, gap / torch.where(size > 0, size, 1.0), 0.0)
    tau = torch.minimum(c.lr / rho, uncapped)
    reached = torch.maximum((loss_avg + along - inner_avg - tau * size / 2) / rho, first.lb)
    new = {"loss_avg": loss_avg, "inner_avg": inner_avg, "model_steps": steps}
    return (tau, uncapped, bound), {**new, "lower_bound": torch.where(star, reached, first.lb)}


def noted(c: Context, told: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The step size, all of it left for ``diagnostics()``."""
    for name, value in zip(("tau", "tau_uncapped", "lower_bound"), told, strict=True):
        c.note(name, value)
    return told[0]


def _known() -> tuple[Hyper, ...]:
    options = {"lr": (Cap, 1.0), "weight_decay": (WeightDecay, 0.0), "lb": (LowerBound, 0.0)}
    options |= {"use_fstar": (EstimateBound, False)}
    return tuple(hyper(name, kind, default) for name, (kind, default) in options.items())


@factory
def model_momentum(correct_bias: bool = False) -> Rule:
    """MoMo's step along an average of the gradient: ``u = tau * d`` (arXiv:2305.07583), to be followed by ``subtract``.

    Args:
        correct_bias: averages start at 0, and ``rho = 1 - beta^t``; otherwise they start at the first values.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return coefficients(h, h["beta"], correct_bias)

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        d = ema(begun(s, s.exp_avg, torch.zeros_like(x.u) if correct_bias else x.u), x.u, c.rate)
        tau = noted(c, c.total(x.u * x.p, d * x.p, d * d, then=model_step))
        return x.but(u=tau.to(d.dtype) * d), {"exp_avg": d}

    slots = (Slot("exp_avg", "average of the gradient", "signed"),)
    known = (*_known(), hyper("beta", Momentum, 0.9))
    return Rule("model_momentum", update, scalars, slots, known, inputs=("loss",), shared=MODEL)


@factory
def model_adam() -> Rule:
    """MoMo-Adam's step: ``u = tau * d / D``, ``D`` Adam's root (arXiv:2305.07583), to be followed by ``subtract``."""

    def scalars(h: Options, t: int) -> dict[str, Any]:
        b1, b2 = h["betas"]
        root = 1 / debias(float(b2), t) ** 0.5
        return {**coefficients(h, b1, True), "rate2": 1 - b2, "root": root, "eps": h["eps"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        d = ema(begun(s, s.exp_avg, torch.zeros_like(x.u)), x.u, c.rate)
        v = ema(s.exp_avg_sq, x.u * x.u, c.rate2)
        u = d / (v.sqrt() * c.root + c.eps)
        tau = noted(c, c.total(x.u * x.p, d * x.p, d * u, then=model_step))
        return x.but(u=tau.to(u.dtype) * u), {"exp_avg": d, "exp_avg_sq": v}

    slots = (
        Slot("exp_avg", "average of the gradient, not corrected", "signed"),
        Slot("exp_avg_sq", "average of its square", "positive"),
    )
    known = (*_known(), hyper("betas", Betas, (0.9, 0.999)), hyper("eps", Eps, 1e-8))
    return Rule("model_adam", update, scalars, slots, known, timed=True, inputs=("loss",), shared=MODEL)
