"""Blocks on several processes at once: nothing ever comes back from a later block, so none waits for one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from hashlib import sha256
from itertools import pairwise
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from polyak.local.auxiliary import AuxiliaryNet, Batch, Criterion
from polyak.local.backward import check, pair, require_factory, run_block
from polyak.local.man import MANNet
from polyak.local.network import LocalNetwork

HEADER = 32  # integers: number of tensors (0 ends the run), then of each its dtype, dimensions and sizes
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
Losses = list[tuple[float, ...]]


class NeighbourError(RuntimeError):
    """Another process of the pipeline has ended, or does not answer."""


class BlockPipeline:
    r"""Trains a :class:`LocalNetwork` on the ranks of a process group, each with consecutive blocks.

    A rank sends the detached output of its last block on and steps its own optimizer at once; while the next rank
    works on batch :math:`t`, it works on batch :math:`t + 1`. Where :class:`MAN` averages a layer of the next rank,
    that rank sends the layer's weights back as they were before its step on the same batch. So the result is that of
    :func:`local_backward` and an optimizer step on each batch in turn, for every optimizer that treats each parameter
    by itself.

    Every rank holds the whole network, but gradients, optimizer state and activations of its own blocks only. All
    take rank 0's weights at the start; call :meth:`gather` to have the trained weights everywhere. For mixed precision
    in bfloat16 call :meth:`run` under :class:`torch.autocast`.

    Args:
        network: the network, of the same make on all ranks.
        optimizer: a function of the parameters of a rank's blocks that gives their optimizer.
        split: how many blocks each rank has; as equal as can be by default.
        criterion: ``criterion(logits, targets)``, a scalar.
        group: the process group (gloo); the default group if ``None``.
        timeout: how long to wait for a rank that is alive and does not answer, here, in :meth:`run` and in
            :meth:`gather`.

    Attributes:
        mine: the blocks of this rank, counted from 0.
        optimizer: the optimizer of their parameters.

    Raises:
        TypeError: if ``optimizer`` is an optimizer, and no function that makes one.
        ValueError: if ``split`` does not give each rank at least one and all of them all blocks; if the variant
            ``"paper"`` of MAN would need weights from after the next rank's step, for which it would have to wait; if
            the ranks' networks or their splits differ.
        NeighbourError: if another rank has ended or does not answer.
    """

    def __init__(
        self,
        network: LocalNetwork,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        *,
        split: Sequence[int] | None = None,
        criterion: Criterion = F.cross_entropy,
        group: dist.ProcessGroup | None = None,
        timeout: timedelta = timedelta(minutes=5),
    ) -> None:
        require_factory("optimizer", optimizer)
        self._group, self._rank, self._world = group, dist.get_rank(group), dist.get_world_size(group)
        self._starts = _starts(network.num_blocks, self._world, split)
        self.network, self._criterion, self._timeout = network, criterion, timeout
        self.mine = range(self._starts[self._rank], self._starts[self._rank + 1])
        nets = [cast(AuxiliaryNet, net) for net in network.auxiliaries]
        edges = [nets[start - 1] for start in self._starts[1:-1]]
        if any(isinstance(net, MANNet) and net.variant == "paper" for net in edges):
            raise ValueError(
                "variant must not be 'paper' at the border of two ranks: it needs weights from after the step"
            )
        self._nets = [nets[j] if j < len(nets) else None for j in self.mine]
        self._edge = edges[self._rank] if self._rank < self._world - 1 else None  # averages a layer of the next rank
        self._edge_before = edges[self._rank - 1] if self._rank > 0 else None
        self._with_inputs = any(net.needs_inputs for net in nets[self._starts[1] :])
        self._device = next(network.parameters()).device
        self._sent: list[tuple[int, Any, Tensor]] = []
        self._agree()
        self._share(network, 0)
        parts = [network.blocks[j] for j in self.mine] + [net for net in self._nets if net is not None]
        self.optimizer = optimizer([p for part in parts for p in part.parameters() if p.requires_grad])

    def run(self, batches: Iterable[tuple[Tensor, Tensor]] | None = None) -> Losses:
        """Train on batches, until they end.

        Args:
            batches: (inputs, targets) on rank 0; ``None`` on the others.

        Returns:
            For each batch the losses of this rank's blocks.

        Raises:
            TypeError: if a batch is no pair of tensors.
            ValueError: if rank 0 has no batches or another rank has some; if a batch is refused.
            RuntimeError: if modules of the model were replaced after it was cut.
            NeighbourError: if a neighbour has ended or does not answer; names it. Nothing hangs.
        """
        if (batches is None) != (self._rank > 0):
            raise ValueError("batches must be given on rank 0, and on no other")
        self.network.check_modules()
        losses: Losses = []
        for x, targets, inputs in self._own(batches) if batches is not None else self._received():
            losses.append(self._iteration(x, Batch(inputs, targets, self._criterion)))
        if self._rank < self._world - 1:
            self._send_on(())
        self._settle()
        return losses

    def _own(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for batch in batches:
            inputs, targets = pair(batch, "batches")
            check(self.network, Batch(inputs, targets, self._criterion))
            yield inputs, targets, inputs

    def _received(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while found := self._receive():
            yield found[0], found[1], found[-1]

    def _iteration(self, x: Tensor, batch: Batch) -> tuple[float, ...]:
        """One batch through this rank's blocks, and their step."""
        self._settle()
        if self._edge_before is not None and (weights := self._edge_before.sources()):
            self._send(_flat(weights), self._rank - 1)
        self.optimizer.zero_grad()
        losses = []
        for j, net in zip(self.mine, self._nets, strict=True):
            x, loss = run_block(self.network.blocks[j], net, x, batch, None, 1.0)
            losses.append(loss)
        if self._rank < self._world - 1:
            self._send_on((x, batch.targets, *([batch.inputs] if self._with_inputs else [])))
        if self._edge is not None and (weights := self._edge.sources()):
            fresh = _flat(weights).cpu()
            self._take(fresh, self._rank + 1)
            for weight, value in zip(weights, fresh.split([w.numel() for w in weights]), strict=True):
                weight.detach().copy_(value.view_as(weight))
        for net in self._nets:
            if net is not None:
                net.finish()
        self.optimizer.step()
        return tuple(torch.stack(losses).tolist())

    def gather(self) -> None:
        """Give every rank the weights and running statistics of all blocks and auxiliary networks.

        Raises:
            NeighbourError: if a rank has ended or does not answer.
        """
        for rank, (start, end) in enumerate(pairwise(self._starts)):
            for part in (*self.network.blocks[start:end], *self.network.auxiliaries[start:end]):
                self._share(part, rank)

    def _agree(self) -> None:
        """Refuse ranks with different networks, whose tensors would not fit each other."""
        named = (*self.network.named_parameters(), *self.network.named_buffers())
        make = self.network.cuts, self._starts, [(name, tuple(t.shape), str(t.dtype)) for name, t in named]
        mine = torch.frombuffer(bytearray(sha256(repr(make).encode()).digest()), dtype=torch.uint8)
        others = [rank for rank in range(self._world) if rank != self._rank]
        for rank in others:
            self._send(mine, rank)
        found = {rank: torch.empty_like(mine) for rank in others}
        for rank, theirs in found.items():
            self._take(theirs, rank)
        self._settle()
        if odd := [rank for rank, theirs in found.items() if not torch.equal(mine, theirs)]:
            raise ValueError(
                f"network and split must be the same on all ranks: blocks, cuts, or names, shapes or dtypes of tensors "
                f"of rank {odd[0]} are not those of rank {self._rank}"
            )

    def _share(self, module: nn.Module, rank: int) -> None:
        """Give every rank one rank's tensors of a module, and whether its averages are still to follow a step."""
        averages = [m for m in module.modules() if isinstance(m, MANNet)]
        stepped = torch.tensor([bool(m.get_extra_state()) for m in averages], dtype=torch.uint8)
        for tensor in (*module.parameters(), *module.buffers(), stepped):
            if tensor.numel() == 0:
                continue
            if rank == self._rank:
                value = tensor.detach().cpu()
                for to in range(self._world):
                    if to != rank:
                        self._send(value, to)
                self._settle()
            else:
                value = torch.empty(tensor.shape, dtype=tensor.dtype)
                self._take(value, rank)
                tensor.detach().copy_(value)
        for average, flag in zip(averages, stepped.tolist(), strict=True):
            average.set_extra_state(flag)

    def _send_on(self, tensors: Sequence[Tensor]) -> None:
        header = [len(tensors)]
        for t in tensors:
            header += [DTYPES.index(t.dtype), t.ndim, *t.shape]
        padded = torch.tensor(header + [0] * (HEADER - len(header)))
        for tensor in (padded, *tensors):
            self._send(tensor, self._rank + 1)

    def _receive(self) -> list[Tensor]:
        header = torch.zeros(HEADER, dtype=torch.int64)
        self._take(header, self._rank - 1)
        count, *rest = header.tolist()
        found = []
        for _ in range(count):
            dtype, ndim, *rest = rest
            tensor = torch.empty(rest[:ndim], dtype=DTYPES[dtype])
            rest = rest[ndim:]
            self._take(tensor, self._rank - 1)
            found.append(tensor.to(self._device))
        return found

    def _send(self, tensor: Tensor, to: int) -> None:
        tensor = tensor.detach().to("cpu", copy=True).contiguous()  # a loader may refill its memory while it is sent
        work = self._call(f"rank {to}", dist.isend, tensor, self._global(to), self._group)
        self._sent.append((to, work, tensor))  # it must live until it has gone

    def _take(self, tensor: Tensor, source: int) -> None:
        work = self._call(f"rank {source}", dist.irecv, tensor, self._global(source), self._group)
        self._call(f"rank {source}", work.wait, self._timeout)

    def _settle(self) -> None:
        """Wait until all that was sent for the batch before has gone: a rank is never far ahead of the next."""
        for to, work, _ in self._sent:
            self._call(f"rank {to}", work.wait, self._timeout)
        self._sent.clear()

    def _call(self, other: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except RuntimeError as error:
            raise NeighbourError(
                f"rank {self._rank} of the pipeline lost {other}: it has ended, or has not answered within "
                f"{self._timeout} ({str(error).splitlines()[0]}). Look at its output, and start all ranks anew"
            ) from error

    def _global(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)


def _starts(num_blocks: int, world: int, split: Sequence[int] | None) -> list[int]:
    """The first block of each rank, and the end."""
    if split is None:
        if num_blocks < world:
            raise ValueError(f"network must have at least one block for each of the {world} ranks, got {num_blocks}")
        return [num_blocks * r // world for r in range(world + 1)]
    if len(split) != world or sum(split) != num_blocks or any(n < 1 for n in split):
        raise ValueError(
            f"split must be {world} numbers from 1 on that add up to {num_blocks} blocks, got {list(split)!r}"
        )
    return [sum(split[:r]) for r in range(world + 1)]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])
