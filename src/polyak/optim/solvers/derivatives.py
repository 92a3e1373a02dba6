"""Gradient and Hessian of a loss, all parameters seen as one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyak.memory import flat


def gradient_and_hessian(
    loss: Tensor, params: Sequence[Tensor], with_hessian: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The gradient (d) of a loss, and its Hessian (d, d), row by row: d backward passes.

    Args:
        loss: one number, with its graph.
        params: what it is differentiated by; those that it does not depend on get zeros.
        with_hessian: off gives None in its place.

    Raises:
        RuntimeError: the graph has been freed by a backward pass already.
    """
    grads = torch.autograd.grad(loss, params, create_graph=with_hessian, materialize_grads=True)
    gradient = flat(grads)
    if not with_hessian:
        return gradient.detach(), None
    if not gradient.requires_grad:  # a linear loss
        return gradient.detach(), gradient.new_zeros(len(gradient), len(gradient))
    rows = [
        flat(torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True)) if entry.requires_grad
        else torch.zeros_like(gradient)
        for entry in gradient
    ]  # fmt: skip
    return gradient.detach(), torch.stack(rows).detach()
