"""The compiled loop that moves averages: one kernel for each combination of dtypes and device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from polyak import aot
from polyak.memory import ema

_kernels: dict[tuple[Any, ...], Callable[[list[Tensor]], Any]] = {}


def move(averages: list[Tensor], parts: list[Tensor], shares: Sequence[float], rates: Sequence[float]) -> bool:
    """Move flat averages towards the sum of flat parts; False where nothing can be compiled, which is said once.

    Args:
        averages: real arrays of one dimension and of more than one element, dense, on one device, without gradients.
        parts: arrays of that size there, each of any real floating dtype.
        shares: weight of each part in the sum.
        rates: weight of the sum in each average, in (0, 1).
    """
    arrays = [*averages, *parts]
    if not aot.usable(arrays):
        return False
    key = (averages[0].device, tuple(a.dtype for a in averages), tuple(p.dtype for p in parts))
    if key not in _kernels:
        kernel = aot.load(source(*key))
        if kernel is None:
            return False
        _kernels[key] = kernel.run
    numbers = torch.tensor([*shares, *rates], dtype=torch.float64, device="cpu").to(averages[0].device)
    _kernels[key]([*arrays, numbers])
    increment_version(averages)
    return True


def source(device: torch.device, averages: tuple[torch.dtype, ...], parts: tuple[torch.dtype, ...]) -> aot.Source:
    """What is compiled for averages and parts of these dtypes."""

    def kernel(*tensors: Tensor) -> None:
        *arrays, numbers = tensors
        _move(arrays[: len(averages)], arrays[len(averages) :], numbers)

    arrays = tuple(aot.Array(dtype, ("n",)) for dtype in (*averages, *parts))
    return aot.Source(
        name="average " + " ".join(str(dtype).removeprefix("torch.") for dtype in averages),
        function=kernel,
        inputs=(*arrays, aot.Array(torch.float64, (len(averages) + len(parts),))),
        device=device,
        identity=f"teachers.kernel {len(averages)} {len(parts)}",
    )


def _move(averages: Sequence[Tensor], parts: Sequence[Tensor], numbers: Tensor) -> None:
    """Shares, then rates, are numbers of a vector, so that another rate compiles nothing."""
    for i, average in enumerate(averages):
        target = parts[0].to(average.dtype)
        if len(parts) > 1:
            target = numbers[0] * target
            for k, part in enumerate(parts[1:], start=1):
                target = target + numbers[k] * part.to(average.dtype)
        average.copy_(ema(average, target, numbers[len(parts) + i]))
