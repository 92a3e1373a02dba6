"""Rank-one updates: an inverse, or what is kept like one, moved along one vector without a decomposition."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RankOne = Literal["code", "paper", "exact"]


def shrink_along(inverse: Tensor, v: Tensor, decay: float) -> Tensor:
    """``J' = decay J + (1 - decay) I;  J' - (J' v)(J' v)^T / (1 + v^T J' v)``: smaller along ``v`` (MKOR's code).

    The inverse of ``J'^-1 + v v^T``: positive definite, and at most the identity if ``J`` is.
    """
    mixed = decay * inverse
    mixed.diagonal().add_(1 - decay)
    moved = mixed @ v
    return mixed - torch.outer(moved, moved) / (1 + v @ moved)


def grow_along(inverse: Tensor, v: Tensor, decay: float) -> Tensor:
    """``d J + (1 - d) / (d^2 (1 + d (1 - d) v^T J v)) (J v)(J v)^T``: larger along ``v`` (as MKOR's paper prints)."""
    moved = inverse @ v
    factor = (1 - decay) / (decay**2 * (1 + decay * (1 - decay) * (v @ moved)))
    return decay * inverse + factor * torch.outer(moved, moved)


def inverse_of_average(inverse: Tensor, v: Tensor, decay: float) -> Tensor:
    """The inverse of ``decay C + (1 - decay) v v^T`` from that of ``C`` (Sherman and Morrison)."""
    moved = inverse @ v
    factor = (1 - decay) / (decay**2 * (1 + (1 - decay) / decay * (v @ moved)))
    return inverse / decay - factor * torch.outer(moved, moved)


UPDATES = {"code": shrink_along, "paper": grow_along, "exact": inverse_of_average}
