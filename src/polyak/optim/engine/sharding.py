"""Reductions over the ranks that hold the shards of a DTensor (FSDP2, tensor parallelism).

Every rank that holds a sharded parameter enters every reduction, with zeros where its shard is empty or has no
gradient, and in the order of the parameters; a rank that stayed away would hang all others. A shard without a
gradient is skipped as a whole tensor without one is: its weights, its memories and its rank's counter stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyak.optim.engine.layout import Unit
from polyak.optim.engine.member import is_sharded

if TYPE_CHECKING:
    from polyak.optim.engine.execute import Waiting


def _groups(param: Tensor) -> tuple[Any, ...]:
    """The process groups over which a DTensor is sharded."""
    mesh = param.device_mesh  # type: ignore[attr-defined]
    placements = param.placements  # type: ignore[attr-defined]
    return tuple(mesh.get_group(dim) for dim, placement in enumerate(placements) if placement.is_shard())


def _reduce(value: Tensor, groups: tuple[Any, ...], largest: bool = False) -> Tensor:
    import torch.distributed as dist

    for group in groups:
        dist.all_reduce(value, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=group)
    return value


def check_rows(param: Tensor, name: str) -> None:
    """Raise ``ValueError`` if a tensor whose row sums are needed is sharded across its rows."""
    for placement in param.placements:  # type: ignore[attr-defined]
        if placement.is_shard() and placement.dim != 0:
            raise ValueError(
                f"{name} is sharded along dimension {placement.dim}, but the method needs whole rows: "
                "shard it along dimension 0 or replicate it"
            )


def found_anywhere(params: Sequence[Tensor], found: Sequence[bool]) -> tuple[list[bool], bool]:
    """For each parameter, whether a rank that holds a part of it found so; and whether any rank did for any parameter.

    Ranks that share a sharded parameter get the same answers, so that all raise or none: one that raised alone would
    leave the others waiting in the next reduction.
    """
    out, anything = list(found), any(found)
    batches: dict[tuple[Any, ...], list[int]] = {}
    for i, param in enumerate(params):
        if is_sharded(param):
            batches.setdefault(_groups(param), []).append(i)
    for groups, indices in batches.items():
        device = params[indices[0]].device
        flags = torch.tensor([*(out[i] for i in indices), anything], dtype=torch.int32, device=device)
        *answers, anything = (bool(flag) for flag in _reduce(flags, groups, largest=True).tolist())
        for i, answer in zip(indices, answers, strict=True):
            out[i] = answer
    return out, anything


class EmptyShard(Unit):
    """Stands for a tensor of which nothing lies on this rank: a single zero, which adds nothing to any sum.

    So its one-number memories follow those of the other ranks, by the same rule.
    """

    def __init__(self, unit: Unit) -> None:
        super().__init__(unit.members, unit.buffers, direct=False)
        here = self.values[0]
        self.numel, self.width, self.shape, self.compilable = 1, 1, (1, 1), False
        self.memories = [
            m if slot.shape == "scalar" else torch.zeros(1, 1, dtype=m.dtype, device=m.device)
            for slot, m in zip(self.chain.slots, self.buffers, strict=True)
        ]
        self.owner = self.first_row = torch.zeros(1, dtype=torch.long, device=here.device)
        self.sizes = torch.full((1, 1), float(unit.members[0].param.numel()), dtype=torch.float64, device=here.device)
        self.count = self.sizes.to(torch.float32 if here.dtype.itemsize < 4 else here.dtype)

    def weights(self) -> Tensor:
        """A zero."""
        return self.values[0].new_zeros(1, 1)

    def gradients(self, grads: Sequence[Tensor]) -> Tensor:
        """A zero."""
        return grads[0].new_zeros(1, 1)

    def scatter(self, weights: Tensor) -> None:
        """Nothing to write."""


def stand_in(unit: Unit) -> Unit:
    """The unit, or what stands for it in the sums where it is empty."""
    return unit if unit.numel or not unit.questions else EmptyShard(unit)


class ShardedSums:
    """Sums over all tensors: shards are added over their ranks, whole tensors count once."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.whole: list[tuple[Tensor, ...]] = []
        self.shards: dict[tuple[Any, ...], list[tuple[Tensor, ...]]] = {}
        self.device: dict[tuple[Any, ...], torch.device] = {}

    def add(self, unit: Unit | None, terms: tuple[Tensor, ...]) -> None:
        """Add a unit's terms; ``unit`` is None for one that is not sharded. Empty terms still enter the reduction."""
        if unit is None:
            self.whole.append(terms)
            return
        groups = _groups(unit.members[0].param)
        self.device[groups] = unit.values[0].device
        self.shards.setdefault(groups, []).append(() if isinstance(unit, EmptyShard) else terms)

    def result(self) -> tuple[Tensor, ...]:
        """The sums, as 0-d float64 tensors."""
        pieces = [torch.stack([t.double() for t in terms]) for terms in self.whole if terms]
        for groups, shards in self.shards.items():
            value = torch.zeros(self.width, dtype=torch.float64, device=self.device[groups])
            for terms in shards:
                if terms:
                    value += torch.stack([t.double() for t in terms])
            pieces.append(_reduce(value, groups))
        return tuple(torch.stack([p.to(pieces[0].device) for p in pieces]).sum(0).unbind())


def sums_of_shards(asked: Sequence[Waiting]) -> list[tuple[list[Tensor], Tensor | None]]:
    """Sums of each sharded tensor, all in one reduction a process group."""
    batches: dict[tuple[Any, ...], list[int]] = {}
    for i, w in enumerate(asked):
        batches.setdefault(_groups(w.unit.members[0].param), []).append(i)
    out: list[Any] = [None] * len(asked)
    for groups, indices in batches.items():
        sums = [_sums(asked[i]) for i in indices]
        flat = _reduce(torch.cat([s.view(-1) for s in sums]), groups)
        for i, part in zip(indices, flat.split([s.numel() for s in sums]), strict=True):
            out[i] = ([t.view(1, 1) for t in part.split(1)], None)
        by_row = [i for i in indices if asked[i].question.kind == "rows"]
        if by_row:
            worst = _reduce(torch.cat([_worst(asked[i]) for i in by_row]), groups, largest=True)
            for i, w in zip(by_row, worst.split(1), strict=True):
                out[i] = (out[i][0], w.view(1, 1))
    return out


def _sums(w: Waiting) -> Tensor:
    device = w.unit.values[0].device
    if not w.terms or isinstance(w.unit, EmptyShard):
        return torch.zeros(w.question.width, dtype=torch.float64, device=device)
    return torch.cat([w.unit.combine(t).view(1) for t in w.terms])


def _worst(w: Waiting) -> Tensor:
    device = w.unit.values[0].device
    if not w.terms or isinstance(w.unit, EmptyShard):
        return torch.full((1,), -torch.inf, dtype=torch.float64, device=device)
    assert w.question.solve is not None
    return w.unit.largest(w.question.solve(*w.terms)).view(1).double()


def matrix_of_shards(unit: Unit, part: Tensor | None, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """A matrix function of a sharded tensor: gathered, solved on every rank, and this rank's shard kept."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    param: Any = unit.members[0].param
    here = unit.values[0]
    dtype = torch.float32 if here.dtype.itemsize < 4 else here.dtype
    if part is None or isinstance(unit, EmptyShard):
        part = torch.zeros(here.shape, dtype=dtype, device=here.device)
    whole = DTensor.from_local(
        part.view(here.shape), param.device_mesh, param.placements,
        run_check=False, shape=param.shape, stride=param.stride(),
    ).full_tensor()  # fmt: skip
    solved = solve(whole[None])[0]
    shard = distribute_tensor(solved, param.device_mesh, param.placements, src_data_rank=None)
    return shard.to_local() if unit.values[0].numel() else here.new_zeros(unit.shape, dtype=dtype)
