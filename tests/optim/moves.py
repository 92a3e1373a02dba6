"""Random weights and gradients, and how far an optimizer moves by them."""

import torch
from torch import Tensor, nn

from polyak.optim import Optimizer


def random(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes]


def moves(optimizer: Optimizer, p: nn.Parameter, gradients: list[Tensor]) -> list[Tensor]:
    """How far each step moved the weight, downhill positive."""
    out = []
    for g in gradients:
        before = p.detach().clone()
        p.grad = g.clone()
        optimizer.step()
        out.append(before - p.detach())
    return out
