"""Trees: what flows along the wires of lenses; tensors in nested tuples, and None, the unit, which holds nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

Tree = Any
"""A tensor, None, or a tuple of trees."""


def tree_map(function: Callable[..., Tensor], *trees: Tree) -> Tree:
    """Apply a function to the leaves that stand at the same place.

    Raises:
        ValueError: trees of different structure, leaves of different shapes; names both.
        TypeError: a leaf that is no tensor.
    """
    first = trees[0]
    for other in trees[1:]:
        if _kind(first) != _kind(other):
            words = f"{_kind(first)}, {_kind(other)}"
            raise ValueError(f"state, parameter or change have different structure: {words}")
    if first is None:
        return None
    if isinstance(first, tuple):
        return tuple(tree_map(function, *parts) for parts in zip(*trees, strict=True))
    return function(*trees)


def _kind(tree: Tree) -> str:
    if tree is None:
        return "the unit"
    if isinstance(tree, tuple):
        return f"a tuple of {len(tree)}"
    if not isinstance(tree, Tensor):
        raise TypeError(f"a tree is of tensors, tuples and None, got {tree!r}")
    return f"a tensor of shape {tuple(tree.shape)}"


def zeros(tree: Tree) -> Tree:
    """A tree like it, of zeros."""
    return tree_map(torch.zeros_like, tree)


def leaves(tree: Tree) -> Iterator[Tensor]:
    """Its tensors, from left to right."""
    if isinstance(tree, tuple):
        for part in tree:
            yield from leaves(part)
    elif tree is not None:
        _kind(tree)
        yield tree


def rebuilt(tree: Tree, values: Iterable[Tensor]) -> Tree:
    """A tree like it, with these tensors for leaves."""
    left = iter(values)
    return tree_map(lambda _: next(left), tree)
