"""Adaptive memory: how much of a direction is kept is the weight of one of two planes under the loss."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import NON_NEGATIVE, POSITIVE, UNIT, Hyper, Lr, Momentum, WeightDecay, hyper
from polyak.memory.averages import debias, ema
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, Shared, Slot, factory

Height = Literal["linear", "loss", "aggregate", "anchored", "shared"]
PlaneHeight = Annotated[Height, "what the memory's plane says of the loss: linear is the paper's, loss needs the loss"]
Pull = Annotated[float, NON_NEGATIVE, "pull towards the plain momentum step"]
LargestBeta = Annotated[float, UNIT, "largest weight of the memory, below 1"]
RootEps = Annotated[float, POSITIVE, "added to the root"]

STANDING = 1e-12
"""What stands for an lr of 0 where groups are weighed against each other: then it matters only if all are 0."""

DIRECTION = Slot("direction", "the last direction", "signed")
PREVIOUS_LR = Slot("previous_lr", "the lr of the last step; negative before the first", shape="scalar", initial=-1.0)
LAST_LOSS, PLANE = Shared("previous_loss", "the last loss"), Shared("plane_height", "height of the memory's plane")
READS = {"loss": (LAST_LOSS,), "anchored": (LAST_LOSS,), "aggregate": (PLANE,)}


def _weight(gap: Tensor, along: Tensor, size: Tensor, c: Any) -> Tensor:
    """The weight of the memory's plane, cut off: ``clip(((1 + lam) * gap - along) / size, 0, bmax)``."""
    best = ((1 + c.lam) * c.has_lr * gap - along) / torch.where(size > 0, size, 1.0)
    return torch.where(size > 0, torch.minimum(best.clamp(min=0), c.bmax), 0.0)


def from_line(sums: tuple[Tensor, ...], s: Any, c: Any) -> tuple[tuple[Tensor], dict[str, Tensor]]:
    """The plane goes through the loss at the last point, as the gradient estimates it."""
    along, size, gap = sums
    return (_weight(gap, along, size, c),), {}


def from_loss(sums: tuple[Tensor, ...], s: Any, c: Any) -> tuple[tuple[Tensor], dict[str, Tensor]]:
    """The plane has the height of the last loss."""
    along, size = sums
    return (_weight(s.previous_loss - c.loss, along, size, c),), {"previous_loss": c.loss}


def from_anchor(sums: tuple[Tensor, ...], s: Any, c: Any) -> tuple[tuple[Tensor], dict[str, Tensor]]:
    """The plane goes through the loss at the last point: here it is lower by ``lr * |d|^2``."""
    along, size, fallen = sums
    return (_weight(s.previous_loss - fallen - c.loss, along, size, c),), {"previous_loss": c.loss}


def from_aggregate(sums: tuple[Tensor, ...], s: Any, c: Any) -> tuple[tuple[Tensor], dict[str, Tensor]]:
    """The plane is the mean of both planes of the last step."""
    along, size, gg, gd, dd = sums
    beta = _weight(s.plane_height - c.loss, along, size, c)
    kept, new = (beta + c.lam) / (1 + c.lam), (1 - beta) / (1 + c.lam)
    theirs = s.plane_height - kept * dd - new * gd
    return (beta,), {"plane_height": beta * theirs + (1 - beta) * (c.loss - kept * gd - new * gg)}


def from_nothing(sums: tuple[Tensor, ...], s: Any, c: Any) -> tuple[tuple[Tensor], dict[str, Tensor]]:
    """Both planes have the same height."""
    along, size = sums
    return (_weight(torch.zeros_like(size), along, size, c),), {}


THEN = {
    "linear": from_line, "loss": from_loss, "anchored": from_anchor, "aggregate": from_aggregate,
    "shared": from_nothing,
}  # fmt: skip


@factory
def plane_momentum(height: Height = "linear", scaled: bool = False) -> Rule:
    """Adaptive memory momentum, ``d <- ((beta + lam) * d + (1 - beta) * u) / (1 + lam)`` (arXiv:2510.04988).

    ``beta`` is one for all tensors, from sums in the metric of the groups' lr; ``d = u`` in a tensor's first step.

    Args:
        height: of the memory's plane.
        scaled: all in Adam's metric; reads out ``d`` over Adam's root.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        found = {"lam": h["lam"], "bmax": h["bmax"], "lr": h["lr"], "weight": h["lr"] if h["lr"] else STANDING}
        found["has_lr"] = float(bool(h["lr"]))  # at rest there is no last step whose loss could tell
        if scaled:
            found |= {"rate2": 1 - h["beta2"], "root": 1 / debias(float(h["beta2"]), t) ** 0.5, "eps": h["eps"]}
        return found

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        new, over = {}, torch.ones_like(x.u)
        if scaled:
            new["exp_avg_sq"] = ema(s.exp_avg_sq, x.u * x.u, c.rate2)
            over = 1 / (new["exp_avg_sq"].sqrt() * c.root + c.eps)
        d = torch.where(s.previous_lr < 0, x.u, s.direction)
        before = s.previous_lr.clamp(min=0)
        differs = (d - x.u) * over
        terms = [c.weight * differs * (x.u + c.lam * d), c.weight * differs * (d - x.u)]
        if height == "linear":
            terms += [before * x.u * d * over]
        elif height == "anchored":
            terms += [before * d * d * over]
        elif height == "aggregate":
            terms += [c.lr * a * over for a in (x.u * x.u, x.u * d, d * d)]
        beta = c.total(*terms, then=THEN[height])
        _note(c, beta)
        beta = beta.to(d.dtype)
        d = ((beta + c.lam) * d + (1 - beta) * x.u) / (1 + c.lam)
        return x.but(u=d * over), {"direction": d, "previous_lr": 0 * s.previous_lr + c.lr, **new}

    squares = Slot("exp_avg_sq", "average of the gradient's square", "positive")
    known: tuple[Hyper, ...] = (hyper("lr", Lr, 0.1), hyper("lam", Pull, 0.1), hyper("bmax", LargestBeta, 0.9))
    if scaled:
        known += (hyper("beta2", Momentum, 0.999), hyper("eps", RootEps, 1e-8))
    return Rule(
        "plane_momentum", update, scalars, (DIRECTION, PREVIOUS_LR, *((squares,) if scaled else ())), known,
        timed=scaled, inputs=("loss",) if height in READS else (),
        shared=READS.get(height, ()),
    )  # fmt: skip


@factory
def plane_adam() -> Rule:
    """Adaptive memory over Adam's root, to be followed by decoupled decay and the step (arXiv:2510.04988).

    ``beta`` is one a tensor; the direction's bias is corrected in the root, ``P = (1 - bmax * prod beta) * root``.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        lr, wd = h["lr"], h["weight_decay"]
        found = {"lam": h["lam"], "bmax": h["bmax"], "lr": lr, "decay": wd, "gap": (1 + wd * lr) / lr if lr else 0.0}
        return {**found, "rate2": 1 - h["beta2"], "root": 1 / debias(float(h["beta2"]), t) ** 0.5, "eps": h["eps"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        v = ema(s.exp_avg_sq, x.u * x.u, c.rate2)
        root = (1 - c.bmax * s.memory_product) * (v.sqrt() * c.root + c.eps)
        d, pulled = s.direction, c.lam * root
        differs = d - x.u
        metric = differs / (root * (1 + pulled))
        moved, along, across, size = c.sum(
            x.u * (d / root + c.decay * x.p), metric * (x.u + pulled * d), x.p * differs, metric * differs
        )
        best = c.gap * s.previous_lr * moved - along - c.decay * across
        beta = torch.minimum((best / torch.where(size > 0, size, 1.0)).clamp(min=0), c.bmax)
        beta = torch.where(s.previous_lr < 0, c.bmax, torch.where(size > 0, beta, 0.0))
        _note(c, beta)
        beta = beta.to(d.dtype)
        d = ((1 - beta) * x.u + (pulled + beta) * d) / (1 + pulled)
        new = {"direction": d, "exp_avg_sq": v, "memory_product": beta * s.memory_product}
        return x.but(u=d / root), {**new, "previous_lr": 0 * s.previous_lr + c.lr}

    slots = (
        DIRECTION, Slot("exp_avg_sq", "average of the gradient's square", "positive"), PREVIOUS_LR,
        Slot("memory_product", "product of all weights of the memory", shape="scalar", initial=1.0),
    )  # fmt: skip
    known = (
        hyper("lr", Lr, 1e-3), hyper("lam", Pull, 0.1), hyper("bmax", LargestBeta, 0.89),
        hyper("beta2", Momentum, 0.999), hyper("eps", RootEps, 1e-8), hyper("weight_decay", WeightDecay, 0.0),
    )  # fmt: skip
    return Rule("plane_adam", update, scalars, slots, known, timed=True)


def _note(c: Any, beta: Tensor) -> None:
    c.note("beta", beta)
    c.note("kept", (beta + c.lam) / (1 + c.lam))
