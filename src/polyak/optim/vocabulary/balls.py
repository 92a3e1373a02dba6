"""Memories that add up: the heavy ball and its relatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polyak.declare import HALF_OPEN_UNIT, UNIT, Hyper
from polyak.memory.averages import ema
from polyak.memory.averages import heavy_ball as roll
from polyak.optim.engine.context import Context, Flow, Places
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.vocabulary import hypers


@factory
def heavy_ball(
    nesterov: bool = False, dampening: bool = False, dampen_first: bool = False, keep_read_out: bool = False
) -> Rule:
    """Polyak's heavy ball as in torch's SGD: ``b <- momentum * b + (1 - dampening) * u``; reads out ``b``.

    Args:
        nesterov: read out ``u + momentum * b``.
        dampening: the hyperparameter of that name is in use.
        dampen_first: dampen the first step too (SGDP); torch starts with ``b = u``.
        keep_read_out: store what the rules put behind the buffer made of it (official SGDP).
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        gain = 1.0 - h["dampening"] if dampening and (t > 1 or dampen_first) else 1.0
        return {"momentum": h["momentum"], "gain": gain}

    def update(x: Flow, s: Any, c: Places) -> tuple[Flow, dict[str, Tensor]]:
        b = roll(s.momentum_buffer, x.u, c.momentum, c.gain)
        read = c.place("momentum_buffer", b)
        direction = x.u + c.momentum * read if nesterov else read
        return x.but(u=direction), {"momentum_buffer": read if keep_read_out else b}

    declared: tuple[Hyper, ...] = (hypers.momentum(0.9),)
    if dampening:
        declared += (Hyper("dampening", 0.0, UNIT, "dampening of the gradient in the momentum"),)
    return Rule(
        "heavy_ball", update, scalars, (Slot("momentum_buffer"),), declared,
        timed=dampening and not dampen_first, places=("momentum_buffer",),
    )  # fmt: skip


@factory
def momentum_ema(nesterov: bool = True) -> Rule:
    """Momentum as an average, ``b <- b + (1 - momentum) * (u - b)``; with ``nesterov`` reads out one step ahead."""

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"rate": 1 - h["momentum"]}

    def update(x: Flow, s: Any, c: Places) -> tuple[Flow, dict[str, Tensor]]:
        b = ema(s.momentum_buffer, x.u, c.rate)
        ahead = x.u + (1 - c.rate) * (b - x.u) if nesterov else b
        return x.but(u=c.place("momentum_buffer", ahead)), {"momentum_buffer": b}

    return Rule(
        "momentum_ema", update, scalars, (Slot("momentum_buffer"),), (hypers.momentum(0.95),),
        places=("momentum_buffer",),
    )  # fmt: skip


def torque(memory: Tensor, u: Tensor, smoothed: Tensor, rate: Any, c: Context, everywhere: bool) -> Tensor:
    """The smoothed cosine between a memory and the signal (TAM): ``s <- s + (1 - gamma) * (S - s)``.

    ``S = <m, u> / (|m| |u|)`` over the tensor, or with ``everywhere`` over all tensors; 0 if either is 0. A
    non-finite ``S`` is not absorbed, since ``s`` would never forget it.
    """
    asks = c.total if everywhere else c.sum
    dot, mm, uu = asks(memory * u, memory * memory, u * u)
    size = mm.sqrt() * uu.sqrt()
    cosine = torch.where(size == 0, 0.0, dot / torch.where(size == 0, 1.0, size)).clamp(-1.0, 1.0).to(smoothed.dtype)
    return torch.where(torch.isfinite(cosine), ema(smoothed, cosine, rate), smoothed)


DECAY_RATE = Hyper("decay_rate", 0.9, HALF_OPEN_UNIT, "retention of the smoothed cosine")


@factory
def torque_aware(everywhere: bool = False) -> Rule:
    """Torque-aware momentum: ``m <- momentum * m + (eps + d) * u`` with ``d = (1 + s) / 2``, see :func:`torque`."""

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"momentum": h["momentum"], "rate": 1 - h["decay_rate"], "half": 0.5 + h["eps"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        cosine = torque(s.momentum_buffer, x.u, s.cosine_avg, c.rate, c, everywhere)
        damping = c.half + 0.5 * cosine
        c.note("cosine", cosine)
        c.note("damping", damping)
        m = roll(s.momentum_buffer, x.u, c.momentum, damping)
        return x.but(u=m), {"momentum_buffer": m, "cosine_avg": cosine}

    slots = (Slot("momentum_buffer"), Slot("cosine_avg", shape="scalar"))
    return Rule("torque_aware", update, scalars, slots, (hypers.momentum(0.9), DECAY_RATE, hypers.eps(1e-8)))
