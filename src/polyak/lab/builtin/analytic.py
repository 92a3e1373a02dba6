"""Two functions whose minimum is known: the Rosenbrock valley and an ill-conditioned quadratic of a matrix.

There is no data, so validation and test are the function itself; a seed is a starting point.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from polyak.lab.problems import Problem

ROWS, COLUMNS, CONDITION = 16, 8, 1e4


class _Point(nn.Module):
    """One parameter, the point that walks."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.point = nn.Parameter(start)


def _problem(
    name: str,
    start: Callable[[int], Tensor],
    function: Callable[[Tensor], Tensor],
    text: str,
    clip: float | None = None,
) -> Problem:
    def batches(seed: int) -> Iterator[None]:
        return itertools.repeat(None)

    def loss(model: nn.Module, batch: None) -> Tensor:
        assert isinstance(model, _Point)
        return function(model.point)

    return Problem(
        name=name,
        build_model=lambda seed: _Point(start(seed)),
        train_batches=batches,
        loss=loss,
        evaluate=lambda model, split: loss(model, None).item(),
        metric="function value",
        higher_is_better=False,
        target=1e-2,
        steps=500,
        description=text,
        clip=clip,
    )


def rosenbrock() -> Problem:
    """The valley (1 - x)^2 + 100 (y - x^2)^2, minimum 0 at (1, 1)."""

    def start(seed: int) -> Tensor:
        jitter = torch.randn(2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return torch.tensor([-1.5, 2.0], dtype=torch.float64) + 0.1 * jitter

    def function(point: Tensor) -> Tensor:
        x, y = point.unbind()
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2

    text = "The Rosenbrock valley in two variables, from points around (-1.5, 2); the minimum is 0."
    text += " Gradients are clipped to norm 1: on the walls they are so long that plain SGD would leave for good."
    return _problem("rosenbrock", start, function, text, clip=1.0)


def illconditioned() -> Problem:
    """Half the squared norm of A W, with the singular values of A from 1 down to 1/100."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(ROWS, ROWS, dtype=torch.float64, generator=generator))
    values = torch.logspace(0, -torch.log10(torch.tensor(CONDITION)).item() / 2, ROWS, dtype=torch.float64)
    matrix = values[:, None] * basis

    def start(seed: int) -> Tensor:
        return torch.randn(ROWS, COLUMNS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    text = f"A quadratic of a {ROWS} x {COLUMNS} matrix with condition number 10,000; the minimum is 0."
    return _problem("illconditioned", start, lambda w: 0.5 * (matrix @ w).square().sum(), text)
