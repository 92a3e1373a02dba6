"""Aggregators: one gradient made of those of several tasks, the rows of a ``(tasks, D)`` matrix."""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import NON_NEGATIVE, POSITIVE, UNIT, Argument, Betas, Choice, Declared, MaxGradNorm, Paper, Range
from polyak.memory import cagrad, cagrad_weights, ema, equalize, magnitude_similarity, norm, pcgrad

CLIP_EPS = 1e-6  # of torch.nn.utils.clip_grad_norm_


class Aggregator(Declared):
    """Base of aggregators: called with a ``(tasks, D)`` matrix of gradients, they return one gradient ``(D,)``.

    ::

        g <- what the method makes of the rows g_1 ... g_T

    Half-precision rows are raised to float32 first. A single row is returned as it is, with a warning. Where
    :func:`~polyak.optim.solvers.multitask_backward` takes one of these it takes any callable of such a matrix,
    torchjd's aggregators among them.
    """

    @torch.no_grad()
    def __call__(self, gradients: Tensor) -> Tensor:
        """The gradient for the parameters that the tasks share.

        Args:
            gradients: ``(tasks, D)``, one row a task.

        Returns:
            ``(D,)``, at least float32.

        Raises:
            TypeError: no tensor of real floating numbers.
            ValueError: no matrix, one without rows or columns, a row that is not finite, a matrix that does not fit the
                memory; nothing has changed then.
        """
        rows = self._checked(gradients)
        if len(rows) == 1:
            warnings.warn(f"{type(self).__name__} got one task, whose gradient it leaves as it is", stacklevel=2)
            return rows[0].clone()
        return self._combined(rows)

    def state_dict(self) -> dict[str, Any]:
        """What the aggregator remembers between calls."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            ValueError: other entries; nothing has changed then.
        """
        want = set(self.state_dict())
        if set(state_dict) != want:
            raise ValueError(f"{type(self).__name__} keeps {sorted(want)}, the state has {sorted(state_dict)}")
        self._load(state_dict)

    def _load(self, state: dict[str, Any]) -> None:
        """Take a state of the right entries."""

    def _combined(self, rows: Tensor) -> Tensor:
        """The gradient of at least two tasks."""
        raise NotImplementedError

    def _checked(self, gradients: Tensor) -> Tensor:
        name = type(self).__name__
        if not isinstance(gradients, Tensor) or not gradients.is_floating_point():
            kind = gradients.dtype if isinstance(gradients, Tensor) else type(gradients).__name__
            raise TypeError(f"{name}: gradients must be a tensor of real floating numbers, got {kind}")
        if gradients.ndim != 2 or not gradients.numel():
            shape = tuple(gradients.shape)
            raise ValueError(f"{name}: gradients must be a matrix (tasks, D) with at least one of each, got {shape}")
        bad = (~gradients.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"{name}: the gradient of task {bad[0]} is not finite")
        half = gradients.dtype in (torch.float16, torch.bfloat16)
        return gradients.float() if half else gradients


class SAMGS(Aggregator):
    """SAM-GS, surgery by the similarity of gradients ("Gradient Similarity Surgery in Multi-Task Deep Learning").

    ::

        n_i <- |g_i|;  S <- mean over pairs i < j of 2 n_i n_j / (n_i^2 + n_j^2)
        m_i <- b1 m_i + (1 - b1) g_i
        v <- b2 v + (1 - b2) (1 - S)^2 + eps
        if S < gamma:  g <- mean(n) * sum_i g_i / n_i
        else:          g <- sum_i g_i * |m_i / (1 - b1^t)| / sqrt(v / (1 - b2^t))
        g <- T g;  g <- g * min(1, max_norm / |g|)

    Where the norms of the tasks are unlike it makes them equal; where they are alike it scales every entry by its
    average. That scale has the unit of a gradient and grows without bound where all norms are equal, so the clipping is
    a part of the method. The memory is an average of the gradient of every task: ``tasks`` times the size of the
    parameters that they share. A task whose gradient is 0 has similarity 0 with all others and no part in the equalized
    sum.

    Of the paper (arXiv:2506.06130) and its code the image experiments are followed: ``eps`` is added to the memory at
    every step, and the mean over pairs decides; ``mode="any"`` is the rule of its reinforcement learning, where the
    least similar pair does. Gammas there: 0.1 for toys, 0.7 for images, 0.9 for reinforcement learning.
    """

    slug = "sam_gs"
    paper = Paper("Gradient Similarity Surgery in Multi-Task Deep Learning", 2025, "2506.06130")
    vectors = ["samgs"]

    gamma: Annotated[float, UNIT, Range(0.05, 0.95, log=False), "similarity below which norms are made equal"] = 0.1
    betas: Annotated[
        Betas, Choice(((0.9, 0.99), (0.9, 0.9))), "retention of the gradients and of the squared unlikeness"
    ] = (0.9, 0.99)
    _: KW_ONLY
    eps: Annotated[float, POSITIVE, "added to the memory of the unlikeness at every step"] = 1e-8
    mode: Annotated[Literal["mean", "any"], "which similarity of pairs decides: their mean, or any of them"] = "mean"
    multiply_by_tasks: Annotated[bool, "multiply by the number of tasks, to match the gradient of a sum"] = True
    max_norm: Annotated[MaxGradNorm, "largest norm of the result; 0: no clipping"] = 1.0

    def _begin(self, values: dict[str, Any]) -> None:
        super()._begin(values)
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self._step = 0
        self._averages: Tensor | None = None
        self._unlikeness: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """``step``, ``exp_avg`` ``(tasks, D)`` and ``unlikeness`` (0-d), the last two None at first."""
        return {"step": self._step, "exp_avg": self._averages, "unlikeness": self._unlikeness}

    def _load(self, state: dict[str, Any]) -> None:
        m, v = (None if x is None else x.detach().clone() for x in (state["exp_avg"], state["unlikeness"]))
        self._step, self._averages, self._unlikeness = int(state["step"]), m, v

    def _checked(self, gradients: Tensor) -> Tensor:
        rows = super()._checked(gradients)
        if self._averages is not None and self._averages.shape != rows.shape:
            for what, was, now in zip(("tasks", "entries of each"), self._averages.shape, rows.shape, strict=True):
                if was != now:
                    raise ValueError(f"SAMGS remembers {was} {what} and got {now}; reset() forgets them")
        return rows

    def _combined(self, rows: Tensor) -> Tensor:
        (b1, b2), pairs = self.betas, magnitude_similarity(rows)
        m = torch.zeros_like(rows) if self._averages is None else self._averages.to(rows)
        v = rows.new_zeros(()) if self._unlikeness is None else self._unlikeness.to(rows)
        m = ema(m, rows, 1 - b1)
        v = ema(v, (1 - pairs.mean()).square(), 1 - b2) + self.eps
        t = self._step + 1
        if bool((pairs.mean() if self.mode == "mean" else pairs.min()) < self.gamma):
            g = equalize(rows)
        else:
            g = (rows * (m / (1 - b1**t)).abs()).sum(0) / (v / (1 - b2**t)).sqrt()
        self._step, self._averages, self._unlikeness = t, m, v
        if self.multiply_by_tasks:
            g = g * len(rows)
        return g * (self.max_norm / (norm(g) + CLIP_EPS)).clamp(max=1.0) if self.max_norm else g


class PCGrad(Aggregator):
    """PCGrad, projecting conflicting gradients ("Gradient Surgery for Multi-Task Learning", arXiv:2001.06782).

    ::

        for each task i:  for the other tasks j, in random order:
            if <h_i, g_j> < 0:  h_i <- h_i - <h_i, g_j> / |g_j|^2 * g_j          (h_i = g_i at first)
        g <- sum_i h_i

    A baseline for :class:`SAMGS`. The order is drawn from ``generator``; without one from torch's global generator. Two
    tasks draw nothing. :meth:`state_dict` holds the generator's state.
    """

    slug = "pcgrad"
    paper = Paper("Gradient Surgery for Multi-Task Learning", 2020, "2001.06782")
    vectors = ["pcgrad-two-tasks"]

    reduction: Annotated[Literal["sum", "mean"], "what is made of the rows at the end"] = "sum"
    _: KW_ONLY
    generator: Annotated[torch.Generator | None, Argument("a generator of the CPU that draws the orders")] = None

    def state_dict(self) -> dict[str, Any]:
        """``generator``: its state, None without one."""
        return {"generator": None if self.generator is None else self.generator.get_state()}

    def _load(self, state: dict[str, Any]) -> None:
        if (state["generator"] is None) != (self.generator is None):
            raise ValueError("PCGrad: of state and aggregator one has a generator and the other has none")
        if self.generator is not None:
            self.generator.set_state(state["generator"])

    def _combined(self, rows: Tensor) -> Tensor:
        free = pcgrad(rows, torch.stack([self._order(i, len(rows)) for i in range(len(rows))]))
        return free.sum(0) if self.reduction == "sum" else free.mean(0)

    def _order(self, i: int, tasks: int) -> Tensor:
        others = torch.tensor([j for j in range(tasks) if j != i], device="cpu")
        return others if tasks == 2 else others[torch.randperm(tasks - 1, generator=self.generator, device="cpu")]


class CAGrad(Aggregator):
    """CAGrad ("Conflict-Averse Gradient Descent for Multi-task Learning", arXiv:2110.14048).

    ::

        g_0 <- mean_i g_i;  K <- the matrix of <g_i, g_j>
        w <- argmin over the simplex of  w' K 1 / T + c |g_0| sqrt(w' K w)
        g <- g_0 + c |g_0| g_w / |g_w|,  g_w = sum_i w_i g_i
        g <- g / (1 + c^2)

    A baseline for :class:`SAMGS`. Of all directions within ``c |g_0|`` of the mean gradient it is the one along which
    the worst task gains most.

    Differs from the authors' code: the small problem is solved in float64 by an interior-point method instead of SLSQP
    in float32, and the result is not multiplied by the number of tasks unless ``multiply_by_tasks``, as their wrappers
    do. torchjd's has no rescaling: ``rescale=0``.
    """

    slug = "cagrad"
    paper = Paper("Conflict-Averse Gradient Descent for Multi-task Learning", 2021, "2110.14048")
    vectors = ["cagrad"]

    c: Annotated[float, NON_NEGATIVE, Range(0.1, 0.9, log=False), "how far from the mean gradient, relative to it"] = (
        0.4
    )
    _: KW_ONLY
    rescale: Annotated[Literal[0, 1, 2], "0: not at all, 1: by 1 / (1 + c^2), 2: by 1 / (1 + c)"] = 1
    multiply_by_tasks: Annotated[bool, "multiply by the number of tasks, to match the gradient of a sum"] = False

    def _combined(self, rows: Tensor) -> Tensor:
        g = cagrad(rows, cagrad_weights(rows, self.c), self.c)
        g = g / (1.0, 1 + self.c**2, 1 + self.c)[self.rescale]
        return g * len(rows) if self.multiply_by_tasks else g
