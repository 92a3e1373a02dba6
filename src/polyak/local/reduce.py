"""The mean of gradients over ranks, block by block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class GradientMean:
    """Averages gradients over a process group; a block's are under way while the next block computes.

    DistributedDataParallel's own reduction waits for one backward pass after the forward pass; here there are
    many inside it.

    Args:
        group: the process group.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._world = dist.get_world_size(group)
        self._running: list[tuple[Any, Tensor, list[nn.Parameter]]] = []

    @staticmethod
    def of(network: nn.Module) -> GradientMean | None:
        """The mean that a wrapped network wants now, ``None`` if it wants none."""
        if not isinstance(network, DistributedDataParallel) or not network.require_backward_grad_sync:
            return None
        return GradientMean(network.process_group)

    def start(self, parameters: Iterable[nn.Parameter]) -> None:
        """Begin with some parameters, the same on all ranks; one without a gradient counts as zero."""
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                by_dtype.setdefault(parameter.dtype, []).append(parameter)
        for found in by_dtype.values():
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in found])
            self._running.append((dist.all_reduce(flat, group=self._group, async_op=True), flat, found))

    def wait(self) -> None:
        """Until all are done and written back."""
        for work, flat, found in self._running:
            work.wait()
            flat /= self._world
            for parameter, mean in zip(found, flat.split([p.numel() for p in found]), strict=True):
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(mean.view_as(parameter))
        self._running.clear()
