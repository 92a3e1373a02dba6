"""Kernels: one pass of a chain over dense arrays, plain or under ``torch.compile``.

Every kernel is fed only dense, detached arrays whose dimensions are 2 or more, with all coefficients in one float64
vector: then one graph serves every model and every hyperparameter (see :mod:`polyak._compiled`). Kernels are shared by
all optimizers of the process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polyak._compiled import Compiled
from polyak.optim.engine.context import Dialogue, Flow
from polyak.optim.engine.direct import Prepared
from polyak.optim.engine.rule import Chain

_kernels: dict[tuple[Any, ...], Kernel] = {}


def high(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a weight of ``dtype`` is computed in."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def evaluate(
    chain: Chain,
    names: list[list[str]],
    maximize: bool,
    p: Tensor,
    g: Tensor,
    memories: tuple[Tensor, ...],
    scalars: Tensor,
    answers: Any,
    numel: Any,
    notes: dict[str, Tensor] | None = None,
) -> tuple[Flow, dict[str, Tensor], Dialogue]:
    """Run the chain on arrays; half precision is computed in float32. Writes nothing."""
    dtype = high(p.dtype)
    weight, gradient = p.to(dtype), g.to(dtype)
    if numel is not None:
        # A column of exact ones. Without it the compiler loops over what needs no column by itself, and then stores
        # the direction for a second loop, a temporary as large as the weight.
        gradient = gradient * (numel / numel)
    if maximize:
        gradient = -gradient
    coefficients, i = [], 0
    for rule_names in names:
        values = {}
        for name in rule_names:
            values[name] = scalars[i]
            i += 1
        coefficients.append(values)
    old = {slot.name: memory.to(dtype) for slot, memory in zip(chain.slots, memories, strict=True)}
    dialogue = Dialogue(answers, numel)
    dialogue.notes = notes
    x, new = chain.run(Flow(gradient, gradient, weight, weight, 1.0), old, coefficients, dialogue)
    return x, new, dialogue


def _make(chain: Chain, names: list[list[str]], level: int | None, maximize: bool) -> Callable[..., Any]:
    """The function of one pass: up to question ``level``, or (``None``) to the end, writing weight and memories."""
    slots = chain.slots

    def kernel(p: Tensor, g: Tensor, memories: tuple[Tensor, ...], scalars: Tensor, answers: Any, numel: Any) -> Any:
        x, new, dialogue = evaluate(chain, names, maximize, p, g, memories, scalars, answers, numel)
        if level is not None:
            return dialogue.open
        for slot, memory in zip(slots, memories, strict=True):
            if slot.name in new:
                memory.copy_(new[slot.name])
        p.copy_(x.w)
        return None

    return kernel


def _written(args: Sequence[Any]) -> tuple[Tensor, ...]:
    """Weight and memories, of a kernel's arguments."""
    return (args[0], *args[2])


class Kernel(Compiled):
    """One pass of a chain. ``plain`` takes any arrays; a call is for arrays that meet the module's contract."""

    def prepared(self, *args: Any) -> Prepared | None:
        """The call with all but gradient and coefficients filled in, where it goes straight to the graph."""
        return Prepared(self.direct, args) if self.direct is not None and self.serves(args) else None


def get(chain: Chain, names: list[list[str]], level: int | None, maximize: bool, *dtypes: Any) -> Kernel:
    """The kernel of a pass; ``dtypes`` (and device) keep graphs of different types in different code objects."""
    key = (chain, level, maximize, *dtypes)
    found = _kernels.get(key)
    if found is None:
        title = "polyak_" + "_".join(rule.name for rule in chain) + ("" if level is None else f"_{level}")
        found = _kernels[key] = Kernel(_make(chain, names, level, maximize), title, _written, "scalars")
    return found
