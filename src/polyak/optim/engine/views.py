"""Views: weights that are moved for a while, and put back bit for bit.

A method that predicts (XGrad, look-ahead) takes the forward and backward pass at other weights than those that it
steps. While it does, ``optimizer.state[p]["original"]`` holds the weights, and each group says ``predicted``: a
checkpoint taken then holds both, and what loads it can restore.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

ORIGINAL, PREDICTED = "original", "predicted"
Move = Callable[[Tensor, dict[str, Any], dict[str, Any]], Tensor | None]


@torch.no_grad()
def predict(optimizer: torch.optim.Optimizer, move: Move) -> None:
    """Move the weights, and remember where they were.

    Args:
        optimizer: whose weights are moved.
        move: ``(weight, its state, its group) -> what is added to it``, or None to leave it.

    Raises:
        RuntimeError: if they are moved already.
        ValueError: a change that cannot be added to its weight; no weight has moved then.
    """
    if is_predicted(optimizer):
        raise RuntimeError("the weights are predicted already; restore() them first")
    moves = [(p, optimizer.state.get(p, {}), group) for group in optimizer.param_groups for p in group["params"]]
    found = [(p, change) for p, state, group in moves if (change := move(p, state, group)) is not None]
    for p, change in found:  # all moves are known, and can be made, before the first weight changes
        _check(p, change)
    for p, change in found:
        optimizer.state[p][ORIGINAL] = p.detach().clone()
        p.add_(change)
    for group in optimizer.param_groups:
        group[PREDICTED] = True


def _check(p: Tensor, change: Tensor) -> None:
    fits = change.ndim <= p.ndim and all(
        a in (1, b) for a, b in zip(reversed(change.shape), reversed(p.shape), strict=False)
    )
    if not fits or not torch.can_cast(change.dtype, p.dtype):
        raise ValueError(
            f"a change of shape {tuple(change.shape)} and {change.dtype} cannot be added to a weight of "
            f"shape {tuple(p.shape)} and {p.dtype}"
        )


@torch.no_grad()
def restore(optimizer: torch.optim.Optimizer) -> None:
    """Put the weights back where :func:`predict` found them; without effect if they are there."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            if ORIGINAL in state:
                p.copy_(state.pop(ORIGINAL))
                if not state:
                    del optimizer.state[p]
        group.pop(PREDICTED, None)


def is_predicted(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the weights are moved."""
    return any(group.get(PREDICTED, False) for group in optimizer.param_groups)


@contextmanager
def predicted(optimizer: torch.optim.Optimizer, move: Move) -> Iterator[None]:
    """:func:`predict` for the length of a block, restored also by an exception."""
    predict(optimizer, move)
    try:
        yield
    finally:
        restore(optimizer)
