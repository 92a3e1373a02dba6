"""The k-th largest of numbers that are spread over tensors and ranks, without bringing them together.

Floating numbers that are not negative are ordered as the integers that their bits spell. So the number is found digit
by digit, 8 bits at a time: a histogram of the next digit, over all tensors and ranks, tells which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from polyak.optim.engine.sharding import added_over_ranks

DIGIT = 8
CHUNK = 1 << 20
"""Elements that are looked at together: it bounds the memory that a step takes."""
Values = Callable[[slice], Tensor]
"""A part of the numbers of one tensor, not negative."""


def kth_largest(
    params: Sequence[Tensor], sizes: Sequence[int], values: Sequence[Values], k: int, dtype: torch.dtype
) -> Tensor:
    """The k-th largest number, counted from 1: a 0-d tensor; nothing waits for a device.

    Every rank that holds a part of a sharded tensor must call it, for the same tensors.

    Args:
        params: where the numbers belong to; says how they are spread.
        sizes: how many numbers of each lie on this rank.
        values: what gives a slice of them.
        k: 1 to their number.
        dtype: float32 or float64, in which they are compared.
    """
    device = params[0].device
    prefix = torch.zeros((), dtype=torch.int64, device=device)
    left = torch.full((), k, dtype=torch.int64, device=device)
    for shift in range(torch.finfo(dtype).bits - DIGIT, -1, -DIGIT):
        counts = [
            _histogram(p.device, size, read, dtype, prefix, shift)
            for p, size, read in zip(params, sizes, values, strict=True)
        ]
        from_top = added_over_ranks(params, counts).to(device).flip(0).cumsum(0)
        place = torch.searchsorted(from_top, left)
        # picked by index_select: an index in brackets would be read on the host
        before = from_top.index_select(0, (place - 1).clamp(min=0).reshape(1))[0]
        left = left - torch.where(place > 0, before, 0)
        prefix = (prefix << DIGIT) | ((1 << DIGIT) - 1 - place)
    return prefix.to(_whole(dtype)).view(dtype)


def _histogram(
    device: torch.device, size: int, read: Values, dtype: torch.dtype, prefix: Tensor, shift: int
) -> Tensor:  # fmt: skip
    """How often each digit comes behind the prefix."""
    found = torch.zeros(1 << DIGIT, dtype=torch.int64, device=device)
    prefix = prefix.to(device)
    for start in range(0, size, CHUNK):
        spelled = read(slice(start, min(start + CHUNK, size))).to(dtype).view(_whole(dtype)).to(torch.int64)
        found.scatter_add_(0, (spelled >> shift) & ((1 << DIGIT) - 1), (spelled >> (shift + DIGIT) == prefix).long())
    return found


def _whole(dtype: torch.dtype) -> torch.dtype:
    """The integers that spell the bits of a number."""
    return torch.int32 if dtype == torch.float32 else torch.int64
