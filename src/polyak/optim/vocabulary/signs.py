"""Rules about signs: Lion, and the read-outs that compare a direction with the present gradient."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from polyak.memory.averages import ema
from polyak.memory.geometry import agreement, sign_times_magnitude
from polyak.optim.engine.context import Context, Flow, Places
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.vocabulary import hypers

MaskScale = Literal["mean", "count", "none"]


@factory
def lion() -> Rule:
    """Lion's direction: the sign of a second mix of memory and gradient (arXiv:2302.06675).

    ``z = b1 * m + (1 - b1) * g; u = sign(z); m <- b2 * m + (1 - b2) * g``
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        b1, b2 = h["betas"]
        return {"rate1": 1 - b1, "rate2": 1 - b2}

    def update(x: Flow, s: Any, c: Places) -> tuple[Flow, dict[str, Tensor]]:
        z = c.place("exp_avg", ema(s.exp_avg, x.u, c.rate1))
        return x.but(u=torch.sign(z)), {"exp_avg": ema(s.exp_avg, x.u, c.rate2)}

    return Rule(
        "lion", update, scalars, (Slot("exp_avg"),), (hypers.betas(0.9, 0.99),),
        refuses=("decay_coupled",), places=("exp_avg",),
    )  # fmt: skip


@factory
def cautious(scale: MaskScale = "mean", floor: float = 1e-3, opposed: float = 0.0) -> Rule:
    """Keep the entries of the direction that agree in sign with the present gradient (arXiv:2411.16085).

    Args:
        scale: ``"mean"`` divides by the mean of the mask; ``"count"`` multiplies by ``N / (kept + 1)``; ``"none"``.
        floor: smallest mean that is divided by.
        opposed: weight of the other entries, in [0, 1]; 1 switches the mask off.

    Raises:
        ValueError: unknown ``scale``, ``opposed`` outside [0, 1], ``floor`` not positive.
    """
    if scale not in ("mean", "count", "none"):
        raise ValueError(f"cautious: scale must be one of ['mean', 'count', 'none'], got {scale!r}")
    if not 0 <= opposed <= 1:
        raise ValueError(f"cautious: opposed must be in [0, 1], got {opposed!r}")
    if not floor > 0:
        raise ValueError(f"cautious: floor must be positive, got {floor!r}")

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        mask = agreement(x.u, x.g)
        if opposed:
            mask = mask + opposed * (1 - mask)
        if scale == "none":
            c.note("mask_share", mask)
            return x.but(u=x.u * mask), {}
        share = c.mean(mask)
        c.note("mask_share", share)
        factor = 1 / share.clamp(min=floor) if scale == "mean" else c.numel / (share * c.numel + 1)
        return x.but(u=x.u * mask * factor), {}

    return Rule("cautious", update, reads_memory=True)


@factory
def grams() -> Rule:
    """The sign of the present gradient with the magnitude of the direction: ``sign(g) * |u|`` (arXiv:2412.17107)."""

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        c.note("mask_share", agreement(x.u, x.g))
        return x.but(u=sign_times_magnitude(x.g, x.u)), {}

    return Rule("grams", update, reads_memory=True)
