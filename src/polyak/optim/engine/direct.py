"""Calls of compiled kernels that are made ready once and repeated step after step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import increment_version

from polyak._compiled import Direct


class Prepared:
    """A call of which only the gradient and the coefficients change from step to step."""

    def __init__(self, direct: Direct, args: Sequence[Any]) -> None:
        _, g, _, scalars, *_ = args
        self.run, self.inputs, self.dtype = direct.run, direct.inputs(args), g.dtype
        self.written = tuple(direct.written(args))
        self.at_g = [i for i, value in enumerate(self.inputs) if value is g]
        self.at_scalars = [i for i, value in enumerate(self.inputs) if value is scalars]
        for i in self.at_g + self.at_scalars:
            self.inputs[i] = None  # nothing of this step is kept alive

    def bound(self, g: Tensor, scalars: Tensor) -> list[Any]:
        """The inputs of one call of ``run``."""
        inputs = self.inputs.copy()
        for i in self.at_g:
            inputs[i] = g
        for i in self.at_scalars:
            inputs[i] = scalars
        return inputs

    def __call__(self, g: Tensor, scalars: Tensor) -> None:
        self.run(self.bound(g, scalars))
        increment_version(self.written)


def call_all(calls: Sequence[tuple[Prepared, list[Any]]]) -> None:
    """Run bound calls, with nothing in between: a kernel sweeps the caches, and Python is slow to start again."""
    for call, inputs in calls:
        call.run(inputs)
    increment_version([t for call, _ in calls for t in call.written])
