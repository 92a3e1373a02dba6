"""Arithmetic on named tensors: a model's weights, or anything that has their names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from polyak.memory._dtype import at_least_float32
from polyak.memory.flat import unflat

Tensors = dict[str, Tensor]

CLIP_EPS = 1e-6
"""What ``torch.nn.utils.clip_grad_norm_`` adds to the norm, and DP-BREM to that of a record."""


def zeros_like(like: Mapping[str, Tensor]) -> Tensors:
    """Zeros of the same names, shapes and dtypes."""
    return {name: torch.zeros_like(t) for name, t in like.items()}


def added(a: Mapping[str, Tensor], b: Mapping[str, Tensor], scale: float = 1.0) -> Tensors:
    """``a + scale * b``."""
    return {name: torch.add(t, b[name], alpha=scale) for name, t in a.items()}


def scaled(a: Mapping[str, Tensor], scale: float) -> Tensors:
    """``scale * a``."""
    return {name: t * scale for name, t in a.items()}


def mixed(fresh: Mapping[str, Tensor], memory: Mapping[str, Tensor], momentum: float) -> Tensors:
    """``(1 - momentum) * fresh + momentum * memory``; without momentum the fresh ones, whatever the memory holds."""
    if momentum == 0:
        return dict(fresh)
    return added(scaled(fresh, 1 - momentum), memory, momentum)


def norm(a: Mapping[str, Tensor]) -> Tensor:
    """The Euclidean norm over all entries of all tensors, in float32 at least."""
    return torch.stack([at_least_float32(t).square().sum() for t in a.values()]).sum().sqrt()


def clipped(a: Mapping[str, Tensor], max_norm: float) -> Tensors:
    """``a * min(1, max_norm / (||a|| + 1e-6))`` with the norm over all tensors, as torch clips gradients."""
    factor = (max_norm / (norm(a) + CLIP_EPS)).clamp(max=1.0)
    return {name: (at_least_float32(t) * factor).to(t.dtype) for name, t in a.items()}


def mean(many: Sequence[Mapping[str, Tensor]]) -> Tensors:
    """The mean of named tensors of n workers, added in float32 at least; beside them one is held."""
    found = {name: at_least_float32(t).clone() for name, t in many[0].items()}
    for one in many[1:]:
        for name, total in found.items():
            total.add_(one[name])
    return {name: total.div_(len(many)).to(many[0][name].dtype) for name, total in found.items()}


def rows(many: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Named tensors of n workers as the rows of one matrix, ``(n, d)``; the first one's order of names counts."""
    parts = [[one[name].reshape(-1) for name in many[0]] for one in many]
    dtype = reduce(torch.promote_types, [part.dtype for part in parts[0]])
    found = parts[0][0].new_empty((len(parts), sum(len(part) for part in parts[0])), dtype=dtype)
    for row, one in zip(found, parts, strict=True):
        torch.cat(one, out=row)  # so each entry is copied once
    return found


def unrowed(row: Tensor, like: Mapping[str, Tensor]) -> Tensors:
    """A row as named tensors again."""
    return dict(zip(like, unflat(row, list(like.values())), strict=True))
