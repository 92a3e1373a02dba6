"""Graphs and clouds that the tests draw."""

import torch
from torch import Tensor

from polyak.optim.solvers import knn_laplacian


def two_clouds(seed: int = 0, each: int = 30) -> tuple[Tensor, Tensor]:
    """Points around (-2, 0) and (2, 0), and which."""
    points = torch.randn(2 * each, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    side = torch.arange(2 * each) % 2
    points[:, 0] += 4.0 * side - 2.0
    return points, side


def laplacian(seed: int, n: int = 20) -> Tensor:
    """Of a random graph."""
    return knn_laplacian(torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), 4)
