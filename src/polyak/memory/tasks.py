r"""Gradients of several tasks, as the rows of one ``(tasks, D)`` matrix: how alike they are, and their conflicts.

Sums are formed in at least float32. Nothing is checked but arguments that say how; zero rows are legal everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyak.memory._check import require
from polyak.memory._dtype import at_least_float32
from polyak.memory.geometry import dot, norm, reject

FIRST_BARRIER, LAST_BARRIER = 1e-1, 1e-12
"""The weight of the logarithmic barrier, from start to end of the simplex problem of CAGrad."""
SMALLEST = 1e-8
"""CAGrad's authors add it under their square roots and to the norm that they divide by."""


def magnitude_similarity(gradients: Tensor) -> Tensor:
    r"""How alike the norms of two tasks are, :math:`2 n_i n_j / (n_i^2 + n_j^2)` for each pair i < j.

    1 for equal norms, 0 where one is 0.

    Args:
        gradients: ``(tasks, D)``.

    Returns:
        ``(pairs,)``, in [0, 1]; empty for one task.
    """
    n = norm(gradients, dim=1).squeeze(1)
    i, j = torch.triu_indices(len(n), len(n), offset=1, device=n.device)
    larger = torch.maximum(n[i], n[j])
    ratio = torch.minimum(n[i], n[j]) / torch.where(larger == 0, 1.0, larger)  # which cannot overflow
    return 2 * ratio / (1 + ratio.square())


def equalize(gradients: Tensor) -> Tensor:
    r"""Sum of the directions of all tasks, times their mean norm: :math:`\bar n \sum_i g_i / n_i`.

    Tasks whose gradient is 0 have no direction and count neither in the sum nor in the mean.

    Args:
        gradients: ``(tasks, D)``.

    Returns:
        ``(D,)``; zeros if all rows are.
    """
    n = norm(gradients, dim=1)
    is_there = n > 0
    mean = n.sum() / is_there.sum().clamp(min=1)
    return (at_least_float32(gradients) / torch.where(is_there, n, 1.0)).sum(0) * mean


def pcgrad(gradients: Tensor, orders: Tensor) -> Tensor:
    r"""Gradients without their conflicts (PCGrad, arXiv:2001.06782), one row a task.

    ::

        for each task i:  g <- g_i;  for j in orders[i]:  if <g, g_j> < 0:  g <- g - <g, g_j> / |g_j|^2 * g_j

    Args:
        gradients: ``(tasks, D)``; the ``g_j`` are as they came.
        orders: ``(tasks, n)`` int64, the tasks that each looks at, in this order; itself is never in its way.

    Returns:
        ``(tasks, D)``.
    """
    original = at_least_float32(gradients)
    rows = []
    for own, order in zip(original, orders.tolist(), strict=True):
        g = own
        for j in order:
            g = torch.where(dot(g, original[j]) < 0, reject(g, original[j]), g)
        rows.append(g)
    return torch.stack(rows)


def cagrad_weights(gradients: Tensor, c: float) -> Tensor:
    r"""The weights of the tasks in CAGrad (arXiv:2110.14048).

    With :math:`K = G G^\top` and :math:`g_0` the mean gradient, over the simplex

    .. math:: \min_w\; w^\top K \mathbf 1 / T + c\, \sqrt{\|g_0\|^2 + \epsilon}\, \sqrt{w^\top K w + \epsilon}.

    The problem is convex; Newton's method with a logarithmic barrier solves it in float64 on the CPU, for a matrix of
    ``T`` by ``T``. Where it has many minima the weights are those in their middle.

    Args:
        gradients: ``(tasks, D)``.
        c: how far from the mean gradient, relative to its norm, >= 0.

    Returns:
        ``(tasks,)``, none negative, of sum 1; equal ones if all gradients are 0.
    """
    require(c >= 0, "c", c, "at least 0")
    rows = at_least_float32(gradients)
    gram = (rows @ rows.T).double().cpu()
    tasks = len(gram)
    w = gram.new_full((tasks,), 1.0 / tasks)
    size = float(gram.diagonal().mean())
    if size > 0 and tasks > 1:
        w = _simplex_minimum(gram / size, c, SMALLEST / size, w)
    return w.to(rows.device, rows.dtype)


def cagrad(gradients: Tensor, weights: Tensor, c: float) -> Tensor:
    r"""CAGrad's direction, :math:`g_0 + c \sqrt{\|g_0\|^2 + \epsilon}\; g_w / (\|g_w\| + \epsilon)` for weighted
    gradient :math:`g_w`.

    Args:
        gradients: ``(tasks, D)``.
        weights: ``(tasks,)``, see :func:`cagrad_weights`.
        c: as there.

    Returns:
        ``(D,)``.
    """
    rows = at_least_float32(gradients)
    mean, weighted = rows.mean(0), weights @ rows
    return mean + c * (norm(mean).square() + SMALLEST).sqrt() / (norm(weighted) + SMALLEST) * weighted


def _simplex_minimum(gram: Tensor, c: float, eps: float, w: Tensor) -> Tensor:
    """Minimize ``<b, w> + a sqrt(w' K w + eps)`` over the simplex, from inside it, by an interior-point method."""
    b = gram.mean(1)
    a = c * (float(gram.mean()) + eps) ** 0.5

    def value(w: Tensor, barrier: float) -> float:
        return float(b @ w + a * (w @ gram @ w + eps).sqrt() - barrier * w.log().sum())

    barrier = FIRST_BARRIER
    while barrier >= LAST_BARRIER:
        for _ in range(50):
            root = (w @ gram @ w + eps).sqrt()
            pull = gram @ w / root
            slope = b + a * pull - barrier / w
            curvature = a * (gram - torch.outer(pull, pull)) / root + (barrier / w.square()).diag()
            # Newton's step within the plane of sum 1; scaled by w the matrix keeps a good condition at the border
            scaled = torch.linalg.solve(w[:, None] * curvature * w, torch.stack([w * slope, w], 1)) * w[:, None]
            step = scaled[:, 1] * (scaled[:, 0].sum() / scaled[:, 1].sum()) - scaled[:, 0]
            decrement = -float(step @ slope)
            if not decrement > 1e-3 * barrier:
                break
            length = min(1.0, 0.99 / max(1e-300, float((-step / w).max())))
            before = value(w, barrier)
            while value(w + length * step, barrier) > before - 0.25 * length * decrement and length > 1e-10:
                length /= 2
            w = w + length * step
            w = w / w.sum()
        barrier /= 100
    return w
