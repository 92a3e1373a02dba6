"""The backward pass of several tasks: their gradients side by side, and what an aggregator makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from polyak.memory import flat

Rows = Sequence[Tensor | None]


def multitask_backward(
    losses: Sequence[Tensor],
    aggregator: Callable[[Tensor], Tensor],
    shared: Iterable[Tensor],
    heads: Iterable[Tensor] = (),
) -> None:
    """Add the combined gradient of several losses to ``p.grad``, in place of ``sum(losses).backward()``.

    ::

        aggregator = polyak.optim.solvers.SAMGS(gamma=0.7)
        for batch in batches:
            optimizer.zero_grad()
            losses = [head_loss(trunk(x)) for ...]
            multitask_backward(losses, aggregator, trunk.parameters(), heads.parameters())
            optimizer.step()

    One backward pass a loss. The gradients by the shared parameters are the rows of a matrix, which takes as many
    times the memory of these parameters as there are tasks; the aggregator makes one gradient of it. The heads get the
    gradient of the sum of the losses.

    As autograd does, it adds to a gradient that is there, leaves a parameter alone that no loss depends on, and skips
    frozen ones. A task that does not reach some of the shared parameters has zeros there. Hooks that run when a
    gradient is accumulated do not run, so DistributedDataParallel does not reduce: do that on ``p.grad`` afterwards.
    Losses scaled by a GradScaler change what a method does whose result is no multiple of its input.

    Args:
        losses: one number with its graph for each task.
        aggregator: makes ``(D,)`` of a ``(tasks, D)`` matrix: :class:`~polyak.optim.solvers.SAMGS`,
            :class:`~polyak.optim.solvers.PCGrad`, :class:`~polyak.optim.solvers.CAGrad`, one of torchjd's,
            or any other callable.
        shared: the parameters that the tasks share, on one device.
        heads: other parameters, for which the losses are summed.

    Raises:
        TypeError: a loss or parameter that is no tensor, an aggregator that cannot be called or returns no tensor.
        ValueError: no loss, one that is not a single number, does not require a gradient or is not finite; no shared
            parameter, one listed twice, one that is no leaf, parameters of several devices; gradients that are not
            finite; a result of another shape or that is not finite. No ``p.grad`` has changed then.
    """
    if not callable(aggregator):
        raise TypeError(f"aggregator must be a callable of a matrix, got {aggregator!r:.80}")
    tasks = _checked_losses(losses)
    trunk, others = _checked_parameters(shared, heads)
    rows, sums = _gradients(tasks, trunk, others)
    with torch.no_grad():
        matrix = torch.stack([_row(row, trunk) for row in rows])
        _check_finite(matrix)
        combined = _checked_result(aggregator(matrix), matrix)
        parts = combined.split([p.numel() for p in trunk])
        for i, (p, part) in enumerate(zip(trunk, parts, strict=True)):
            if any(row[i] is not None for row in rows):
                _accumulate(p, part.reshape(p.shape))
        for p, total in zip(others, sums, strict=True):
            if total is not None:
                _accumulate(p, total)


def _checked_losses(losses: Sequence[Tensor]) -> list[Tensor]:
    listed = list(losses)
    if not listed:
        raise ValueError("losses must be one or more, got none")
    for i, loss in enumerate(listed):
        if not isinstance(loss, Tensor):
            raise TypeError(f"losses[{i}] must be a tensor, got {type(loss).__name__}")
        if loss.numel() != 1:
            raise ValueError(f"losses[{i}] must be a single number, got shape {tuple(loss.shape)}")
        if not loss.requires_grad:
            raise ValueError(f"losses[{i}] does not require a gradient")
        if not bool(loss.isfinite()):
            raise ValueError(f"losses[{i}] is not finite: {loss.item()}")
    return listed


def _checked_parameters(shared: Iterable[Tensor], heads: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Those of both kinds that are trained."""
    seen: set[int] = set()
    found: dict[str, list[Tensor]] = {"shared": list(shared), "heads": list(heads)}
    for name, listed in found.items():
        for i, p in enumerate(listed):
            if not isinstance(p, Tensor):
                raise TypeError(f"{name}[{i}] must be a parameter, got {type(p).__name__}")
            if id(p) in seen:
                raise ValueError(f"{name}[{i}] is listed twice")
            if not p.is_leaf:
                raise ValueError(f"{name}[{i}] must be a leaf: the result of an operation keeps no gradient")
            seen.add(id(p))
    trunk, others = ([p for p in listed if p.requires_grad] for listed in found.values())
    if not trunk:
        raise ValueError("shared must hold at least one parameter that requires a gradient")
    if len(devices := {str(p.device) for p in trunk}) > 1:
        raise ValueError(f"shared must be on one device, got {sorted(devices)}")
    return trunk, others


def _gradients(losses: list[Tensor], trunk: list[Tensor], heads: list[Tensor]) -> tuple[list[Rows], Rows]:
    """The gradient of each loss by the trunk, and of their sum by the heads."""
    rows: list[Rows] = []
    sums: list[Tensor | None] = [None] * len(heads)
    for i, loss in enumerate(losses):
        is_last = i == len(losses) - 1
        found = torch.autograd.grad(loss.reshape(()), trunk + heads, retain_graph=not is_last, allow_unused=True)
        rows.append(found[: len(trunk)])
        for j, g in enumerate(found[len(trunk) :]):
            before = sums[j]
            sums[j] = before if g is None else g if before is None else before + g
    for j, total in enumerate(sums):
        if total is not None and not bool(_dense(total).isfinite().all()):
            raise ValueError(f"the gradient of the losses by heads[{j}] is not finite")
    return rows, sums


def _row(gradients: Rows, params: list[Tensor]) -> Tensor:
    pairs = zip(gradients, params, strict=True)
    return flat([torch.zeros_like(p) if g is None else _dense(g) for g, p in pairs])


def _dense(g: Tensor) -> Tensor:
    return g if g.layout is torch.strided else g.to_dense()


def _check_finite(matrix: Tensor) -> None:
    bad = (~matrix.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"the gradient of losses[{bad[0]}] is not finite")


def _checked_result(combined: Tensor, matrix: Tensor) -> Tensor:
    if not isinstance(combined, Tensor):
        raise TypeError(f"the aggregator must return a tensor, got {type(combined).__name__}")
    if combined.shape != matrix.shape[1:]:
        shapes = f"{tuple(matrix.shape[1:])} of a matrix {tuple(matrix.shape)}, got {tuple(combined.shape)}"
        raise ValueError(f"the aggregator must return a vector {shapes}")
    if not bool(combined.isfinite().all()):
        raise ValueError("the aggregator returned a gradient that is not finite")
    return combined


def _accumulate(p: Tensor, g: Tensor) -> None:
    """As a backward pass does: add to what is there, or begin with a copy laid out like the parameter."""
    if p.grad is None:
        p.grad = torch.empty_like(p).copy_(_dense(g))
    else:
        p.grad += g
