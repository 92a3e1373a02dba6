"""Read-outs that compare the signs of a direction with those of the present gradient."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from torch import Tensor

from polyak.memory.geometry import agreement
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Rule, factory

MaskScale = Literal["mean", "count", "none"]
Masked = Annotated[MaskScale, "divide by the mean of the mask, multiply by N / (kept + 1), or leave it"]


def agreeing(
    value: Tensor,
    memory: Tensor,
    gradient: Tensor,
    c: Context,
    scale: MaskScale = "mean",
    floor: float = 1e-3,
    opposed: float = 0.0,
) -> Tensor:
    """The entries of a value at which a memory agrees in sign with the gradient, scaled; see :func:`cautious`."""
    mask = agreement(memory, gradient)
    if opposed:
        mask = mask + opposed * (1 - mask)
    if scale == "none":
        c.note("mask_share", mask)
        return value * mask
    share: Tensor = c.mean(mask)
    c.note("mask_share", share)
    factor = 1 / share.clamp(min=floor) if scale == "mean" else c.numel / (share * c.numel + 1)
    scaled: Tensor = value * mask * factor
    return scaled


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
    if not 0 <= opposed <= 1:
        raise ValueError(f"cautious: opposed must be in [0, 1], got {opposed!r}")
    if not floor > 0:
        raise ValueError(f"cautious: floor must be positive, got {floor!r}")

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(u=agreeing(x.u, x.u, x.g, c, scale, floor, opposed)), {}

    return Rule("cautious", update, reads_memory=True)
