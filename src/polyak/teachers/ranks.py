"""Rows of all ranks of a torch.distributed group, in the order of the ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """Rank and number of ranks; (0, 1) without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sizes(x: Tensor) -> list[int]:
    """Number of rows that each rank has."""
    return [rows for (rows,) in share([x.shape[0]], x.device)]


@torch.no_grad()
def share(numbers: list[int], device: torch.device) -> list[list[int]]:
    """As many whole numbers of each rank, by way of a device that the group speaks for."""
    _, count = world()
    if count == 1:
        return [numbers]
    own = torch.tensor(numbers, device=device)
    found = [torch.empty_like(own) for _ in range(count)]
    dist.all_gather(found, own)
    return [part.tolist() for part in found]


@torch.no_grad()
def gather(x: Tensor, rows: list[int] | None = None) -> Tensor:
    """The rows of all ranks, without gradients; ranks may have different numbers of them.

    Args:
        x: this rank's rows.
        rows: what :func:`sizes` gives for them, where it is known.
    """
    _, count = world()
    if count == 1:
        return x.detach()
    rows = sizes(x) if rows is None else rows
    padded = x.new_zeros(max(rows), *x.shape[1:])
    padded[: x.shape[0]] = x.detach()
    found = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(found, padded)
    return torch.cat([part[:n] for part, n in zip(found, rows, strict=True)])
