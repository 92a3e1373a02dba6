"""The compiled loop that moves averages: one kernel for each combination of dtypes and device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyak._compiled import Compiled, failed
from polyak.memory import ema

_kernels: dict[tuple[Any, ...], Compiled] = {}


def move(averages: list[Tensor], parts: list[Tensor], shares: Sequence[float], rates: Sequence[float]) -> bool:
    """Move flat averages towards the sum of flat parts; False where nothing can be compiled, which is said once.

    Args:
        averages: real arrays of one dimension and of more than one element, dense, on one device, without gradients.
        parts: arrays of that size there, each of any real floating dtype.
        shares: weight of each part in the sum.
        rates: weight of the sum in each average, in (0, 1).
    """
    if failed():
        return False
    key = (averages[0].device, tuple(a.dtype for a in averages), tuple(p.dtype for p in parts))
    if key not in _kernels:
        _kernels[key] = Compiled(_move, f"polyak_ema_{len(_kernels)}", lambda args: args[0])
    _kernels[key](averages, parts, torch.tensor([*shares, *rates], dtype=torch.float64).unbind())
    return True


def _move(averages: list[Tensor], parts: list[Tensor], numbers: Sequence[Tensor]) -> None:
    """Shares, then rates, are 0-d tensors, so that another rate compiles nothing."""
    for i, average in enumerate(averages):
        target = parts[0].to(average.dtype)
        if len(parts) > 1:
            target = numbers[0] * target
            for share, part in zip(numbers[1 : len(parts)], parts[1:], strict=True):
                target = target + share * part.to(average.dtype)
        average.copy_(ema(average, target, numbers[len(parts) + i]))
