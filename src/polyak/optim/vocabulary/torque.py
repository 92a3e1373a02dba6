"""Torque: how well a memory and the present gradient agree in direction."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import HALF_OPEN_UNIT
from polyak.memory.averages import ema
from polyak.optim.engine.context import Context
from polyak.optim.engine.rule import Slot

DecayRate = Annotated[float, HALF_OPEN_UNIT, "retention of the smoothed cosine"]
Scope = Annotated[Literal["tensor", "global"], "one cosine a tensor, or one over all tensors"]
COSINE = Slot("cosine_avg", "the smoothed cosine, one number a tensor", shape="scalar")


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
