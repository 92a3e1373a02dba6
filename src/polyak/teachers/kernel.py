"""The compiled loop that moves averages, and a short way to call it.

A call through torch.compile costs some 40 microseconds, in which the threads of the last loop fall asleep; over a model
that is a tenth of the time of an update. What its guards protect is fixed here by contract: flat dense arrays of equal
and ever varying size, one kernel for each combination of dtypes. So the first call is watched, and later ones go
straight to the compiled graph, if every input of it could be told; if not, they go through torch.compile.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from polyak.memory import ema

_kernels: dict[tuple[Any, ...], Kernel] = {}
_failed = False


def move(averages: list[Tensor], parts: list[Tensor], shares: Sequence[float], rates: Sequence[float]) -> bool:
    """Move flat averages towards the sum of flat parts; False, and said once, where nothing can be compiled.

    Args:
        averages: real arrays of one dimension and of more than one element, dense, on one device, without gradients.
        parts: arrays of that size there, each of any real floating dtype.
        shares: weight of each part in the sum.
        rates: weight of the sum in each average, in (0, 1).
    """
    global _failed
    if _failed:
        return False
    key = (averages[0].device, tuple(a.dtype for a in averages), tuple(p.dtype for p in parts))
    if key not in _kernels:
        _kernels[key] = Kernel(len(_kernels))
    try:
        _kernels[key](averages, parts, shares, rates)
    except Exception as error:
        _failed = True
        lines = str(error).strip().splitlines() or [""]
        warnings.warn(
            f"torch.compile failed ({type(error).__name__}: {lines[0]}); averages are updated without it",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def _move(averages: list[Tensor], parts: list[Tensor], numbers: list[Tensor]) -> None:
    """Shares, then rates, are 0-d tensors, so that another rate compiles nothing."""
    for i, average in enumerate(averages):
        target = parts[0].to(average.dtype)
        if len(parts) > 1:
            target = numbers[0] * target
            for share, part in zip(numbers[1 : len(parts)], parts[1:], strict=True):
                target = target + share * part.to(average.dtype)
        average.copy_(ema(average, target, numbers[len(parts) + i]))


class Kernel:
    """The loop for one combination of dtypes."""

    def __init__(self, number: int) -> None:
        # dynamo counts recompilations per code object, so every kernel gets one of its own
        code = _move.__code__.replace(co_name=f"polyak_ema_{number}")
        plain = types.FunctionType(code, _move.__globals__, code.co_name)
        self._compiled = torch.compile(plain, backend=self._backend, dynamic=True, fullgraph=True)
        self._graph: Callable[..., Any] | None = None
        self._seen: tuple[Any, ...] = ()
        self._order: list[int] | None = None

    def __call__(
        self, averages: list[Tensor], parts: list[Tensor], shares: Sequence[float], rates: Sequence[float]
    ) -> None:
        numbers = torch.tensor([*shares, *rates], dtype=torch.float64).unbind()
        size = averages[0].numel()
        inputs = [size, *averages, *parts, *numbers]
        # on accelerators the indices of a graph made for smaller arrays have 32 bits
        if self._order is not None and self._graph is not None and (averages[0].is_cpu or size < 2**31):
            self._graph(*[inputs[i] for i in self._order])
            increment_version(averages)
            return
        self._compiled(averages, parts, list(numbers))
        if self._order is None:
            self._order = _order(self._seen, inputs)
        self._seen = ()

    def _backend(self, graph: Any, examples: list[Any]) -> Callable[..., Any]:
        from torch._dynamo.backends.registry import lookup_backend  # here: compiling is not for import time

        made = lookup_backend("inductor")(graph, examples)

        def watched(*arguments: Any) -> Any:
            self._graph, self._seen = made, arguments
            return made(*arguments)

        return watched


def _order(seen: tuple[Any, ...], inputs: list[Any]) -> list[int] | None:
    """For each argument that a graph got the index of the input that it was, the size being the only int.

    ``None`` if one cannot be told, or if the graph has no size, so that it is for this one alone.
    """
    order = []
    for argument in seen:
        is_size = type(argument) is int and argument == inputs[0]
        same = [0] if is_size else [i for i, x in enumerate(inputs) if x is argument]
        if not same:
            return None
        order.append(same[0])
    return order if 0 in order else None
