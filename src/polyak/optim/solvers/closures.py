"""Losses that come as closures: called, checked and differentiated; each mistake is told with the closure's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Closure = Callable[[], Tensor]


def loss_of(closure: Closure, name: str) -> Tensor:
    """The loss that a closure returns, 0-d with its graph.

    Raises:
        TypeError: it returns no tensor.
        ValueError: it returns other than one number, or one without a graph.
    """
    with torch.enable_grad():
        loss = closure()
    if not isinstance(loss, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(loss).__name__}")
    if loss.numel() != 1 or not loss.requires_grad:
        raise ValueError(
            f"{name} must return a loss, one number with its graph, got shape {tuple(loss.shape)} and "
            f"requires_grad={loss.requires_grad}"
        )
    return loss.reshape(()) if loss.ndim else loss


def gradient_of(loss: Tensor, params: Sequence[Tensor], name: str) -> Sequence[Tensor]:
    """Its gradient; zeros for parameters that it does not depend on.

    Raises:
        RuntimeError: an entry that is not finite.
    """
    found = torch.autograd.grad(loss, params, materialize_grads=True)
    check_finite(found, f"the gradient of {name}")
    return found


def check_finite(tensors: Sequence[Tensor], what: str) -> None:
    """Raise ``RuntimeError`` if an entry is not finite."""
    if not all(bool(t.isfinite().all()) for t in tensors):
        raise RuntimeError(f"{what} is not finite")
