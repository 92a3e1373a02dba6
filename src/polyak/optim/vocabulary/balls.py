"""Momentum: the heavy ball and its form as an average."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from polyak.declare import Dampening, Hyper, Momentum, hyper
from polyak.memory.averages import ema
from polyak.memory.averages import heavy_ball as roll
from polyak.optim.engine.context import Flow, Places
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.vocabulary.signs import agreeing


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

    declared: tuple[Hyper, ...] = (hyper("momentum", Momentum, 0.9),)
    if dampening:
        declared += (hyper("dampening", Dampening, 0.0),)
    return Rule(
        "heavy_ball", update, scalars, (Slot("momentum_buffer", "the heavy ball", "signed"),), declared,
        timed=dampening and not dampen_first, places=("momentum_buffer",),
    )  # fmt: skip


@factory
def momentum_ema(nesterov: bool = True, masked: bool = False) -> Rule:
    """Momentum as an average, ``b <- b + (1 - momentum) * (u - b)``; reads out ``b``.

    Args:
        nesterov: read out one step ahead, ``(1 - momentum) * u + momentum * b``.
        masked: of what is read out keep the entries at which ``b`` agrees in sign with the gradient, divided by their
            share (C-Muon); :func:`cautious` behind this rule would look at the signs of what is read out.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"rate": 1 - h["momentum"]}

    def update(x: Flow, s: Any, c: Places) -> tuple[Flow, dict[str, Tensor]]:
        b = ema(s.momentum_buffer, x.u, c.rate)
        ahead = x.u + (1 - c.rate) * (b - x.u) if nesterov else b
        ahead = c.place("momentum_buffer", ahead)
        return x.but(u=agreeing(ahead, b, x.g, c) if masked else ahead), {"momentum_buffer": b}

    slots = (Slot("momentum_buffer", "average of the gradient", "signed"),)
    known = (hyper("momentum", Momentum, 0.95),)
    return Rule("momentum_ema", update, scalars, slots, known, places=("momentum_buffer",))
