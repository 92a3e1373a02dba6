"""Polyak's step size with momentum: how far a step goes is read from the loss and its least value."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import POSITIVE, Hyper, Interval, Momentum, WeightDecay, hyper
from polyak.memory.averages import heavy_ball
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, Slot, factory

Motion = Literal["none", "heavy_ball", "nesterov"]
LargestStep = Annotated[float, Interval(0.0, math.inf), "largest step size; infinity: no cap"]
LeastLoss = Annotated[
    float,
    Interval(low_open=True, high_open=True),
    "least value of the loss, known or assumed; with maximize, of its opposite",
]
Caution = Annotated[float, POSITIVE, "divides the gap between the loss and its least value; theory asks 1/2 or more"]
AdaptiveDecay = Annotated[WeightDecay, "decoupled weight decay, times the step size found"]


def polyak(sums: tuple[Tensor, ...], s: Any, c: Any) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Step size ``clip((factor * (f - lb) / c + push) / |d|^2, 0, lr)``, and the same without the cap.

    ``sums`` are ``|d|^2`` and, where the step starts from a moving point, ``push = momentum * <g, x_k - x_(k-1)>``.
    """
    size, *push = sums
    gap = (c.factor * (c.loss - c.lb) + sum(push)).clamp(min=0)
    uncapped = torch.where(size > 0, gap / torch.where(size > 0, size, 1.0), 0.0)
    return (torch.minimum(uncapped, c.lr), uncapped), {}


@factory
def polyak_step(motion: Motion = "none", doubled: bool = False) -> Rule:
    """The step, ``eta`` from :func:`polyak` over all tensors (arXiv:2305.12939): ``w <- w - eta * (u + wd * w) + ...``.

    Args:
        motion: what is added: ``"none"``; ``"heavy_ball"`` ``momentum * (x_k - x_(k-1))``; ``"nesterov"`` a move on to
            the next point at which the gradient is taken.
        doubled: twice the gap between the loss and its least value.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        moves = {"momentum": h["momentum"]} if motion != "none" else {}
        factor = (2.0 if doubled else 1.0) / h["c"]
        return {"lr": h["lr"], "lb": h["lb"], "factor": factor, "decay": h["weight_decay"], **moves}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        push = (c.momentum * x.u * s.displacement,) if motion == "heavy_ball" else ()
        eta, uncapped = c.total(x.u * x.u, *push, then=polyak)
        c.note("eta", eta)
        c.note("eta_uncapped", uncapped)
        step = -eta.to(x.u.dtype) * (x.u + c.decay * x.w)
        if motion == "none":
            return x.but(w=x.w + step), {}
        if motion == "heavy_ball":
            moved = heavy_ball(s.displacement, step, c.momentum)
            return x.but(w=x.w + moved), {"displacement": moved}
        lead = c.momentum * (s.lead + step)  # what the weight is ahead by, whatever the momentum was then
        return x.but(w=x.w + step + lead), {"lead": lead}

    kept = {
        "none": (),
        "heavy_ball": (Slot("displacement", "the last step of the weight, x_k - x_(k-1)"),),
        "nesterov": (Slot("lead", "how far the weight is ahead of the solution, y - x"),),
    }
    known: tuple[Hyper, ...] = (
        hyper("lr", LargestStep, 0.1), hyper("lb", LeastLoss, 0.0), hyper("c", Caution, 1.0),
        hyper("weight_decay", AdaptiveDecay, 0.0),
    )  # fmt: skip
    known += (hyper("momentum", Momentum, 0.9),) if motion != "none" else ()
    return Rule("polyak_step", update, scalars, kept[motion], known, writes="step", inputs=("loss",))
