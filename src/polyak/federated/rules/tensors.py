"""Arithmetic on named tensors: a model's weights, or anything that has their names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polyak.memory.flat import flat, unflat

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
    """The Euclidean norm over all entries of all tensors."""
    return torch.stack([t.square().sum() for t in a.values()]).sum().sqrt()


def clipped(a: Mapping[str, Tensor], max_norm: float) -> Tensors:
    """``a * min(1, max_norm / (||a|| + 1e-6))`` with the norm over all tensors, as torch clips gradients."""
    factor = (max_norm / (norm(a) + CLIP_EPS)).clamp(max=1.0)
    return {name: t * factor for name, t in a.items()}


def rows(many: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Named tensors of n workers as the rows of one matrix, ``(n, d)``; the first one's order of names counts."""
    names = list(many[0])
    return torch.stack([flat([one[name] for name in names]) for one in many])


def unrowed(row: Tensor, like: Mapping[str, Tensor]) -> Tensors:
    """A row as named tensors again."""
    return dict(zip(like, unflat(row, list(like.values())), strict=True))
