"""Trust ratios: steps of a layer in proportion to the length of its weight."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import NON_NEGATIVE, STATIC_IF_ZERO, Eps, Hyper, Lr, WeightDecay, hyper
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, factory

Denominator = Literal["sum", "joint"]
TrustCoeff = Annotated[float, NON_NEGATIVE, "length of a step, as a share of the weight's"]
TrustEps = Annotated[Eps, "added to the denominator of the trust ratio"]
ClampValue = Annotated[
    float, NON_NEGATIVE, STATIC_IF_ZERO, "largest length of a weight that counts (LAMB's first versions: 10); 0: any"
]
TrustClip = Annotated[bool, "the trust ratio is at most 1: of LARS, divided by lr before (LARC)"]
Exclude = Annotated[bool, "no decay and no trust ratio for tensors with fewer than 2 dimensions"]


@factory
def trust(
    denominator: Denominator = "joint",
    coefficient: bool = False,
    clip: bool = False,
    exclude_1d: bool = True,
    clamp: bool = False,
) -> Rule:
    """Couple weight decay to the direction, and bring the sum to the length of the weight.

    ``r = u + wd * p``; ``u <- r * |p| / |r|`` over one tensor; ``r`` itself where the weight or ``u`` is 0.

    Args:
        denominator: ``"joint"`` divides by ``|r|``, ``"sum"`` by ``|u| + wd * |p|`` (LARS).
        coefficient: multiply the ratio by ``trust_coeff``, and add ``eps`` to its denominator (LARS).
        clip: the ratio is at most 1; with ``coefficient`` at most ``lr``, and divided by it (LARC).
        exclude_1d: leave tensors with fewer than 2 dimensions alone.
        clamp: the length of the weight counts as at most ``clamp_value``.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        found = {"decay": h["weight_decay"]}
        if clamp:
            found["longest"] = h["clamp_value"]
        if coefficient:
            found |= {"coefficient": h["trust_coeff"], "eps": h["eps"]}
        if coefficient and clip:
            found |= {"most": h["lr"], "per_lr": 1 / h["lr"] if h["lr"] else 1.0}
        return found

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        r = x.u + c.decay * x.p
        pp, uu, rr = c.sum(x.p * x.p, x.u * x.u, r * r)
        size = rr.sqrt() if denominator == "joint" else uu.sqrt() + c.decay * pp.sqrt()
        adapts = (pp > 0) & ((uu if coefficient else rr) > 0)
        ratio = pp.sqrt().clamp(max=c.longest) if clamp else pp.sqrt()
        if coefficient:
            ratio, size = c.coefficient * ratio, size + c.eps
        ratio = torch.where(adapts, ratio / torch.where(adapts, size, 1.0), 1.0)
        if clip:
            ratio = ratio.clamp(max=c.most) * c.per_lr if coefficient else ratio.clamp(max=1.0)
        c.note("trust_ratio", ratio)
        return x.but(u=ratio * r), {}

    known: tuple[Hyper, ...] = (hyper("weight_decay", WeightDecay, 0.0),)
    if coefficient:
        known += (hyper("trust_coeff", TrustCoeff, 1e-3), hyper("eps", TrustEps, 0.0))
    if coefficient and clip:
        known += (hyper("lr", Lr, 1.0),)
    if clamp:
        known += (hyper("clamp_value", ClampValue, 10.0),)
    least = 2 if exclude_1d else 0
    return Rule("trust", update, scalars, hypers=known, applies=lambda shape: len(shape) >= least)
