"""Reductions over the ranks that hold the shards of a DTensor (FSDP2, tensor parallelism).

Every rank that holds a sharded parameter enters every reduction, with zeros where its shard is empty or has no
gradient, and in the order of the parameters; a rank that stayed away would hang all others. A shard without a
gradient is skipped as a whole tensor without one is: its weights, its memories and its rank's counter stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyak.optim.engine.chain import Chain
from polyak.optim.engine.context import Question, Rows
from polyak.optim.engine.kernels import high
from polyak.optim.engine.member import is_sharded
from polyak.optim.engine.rule import Options
from polyak.optim.engine.units import Piece, Unit, Waiting, solve


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


def check_shards(param: Tensor, name: str, chain: Chain, options: Options) -> None:
    """Raise ``ValueError`` if a sharded tensor lies on its ranks in a way that a chain cannot work with.

    Args:
        param: the tensor; one that is not sharded passes.
        name: what the message calls it.
        chain: the rules that apply to it.
        options: of its group.
    """
    if not is_sharded(param):
        return
    if chain.reads_layers:
        raise ValueError(f"{name} is sharded, and the method reads what flows through its whole layer: replicate it")
    asked, shapes = {q.kind for q in chain.questions(options)}, {slot.shape for slot in chain.slots}
    if "row" in shapes:
        raise ValueError(f"{name} is sharded, and the method keeps a number a row of it: replicate it")
    if any(map(callable, shapes)):
        raise ValueError(
            f"{name} is sharded, and the method keeps memories of shapes of their own for it: replicate it"
        )
    for placement in param.placements:  # type: ignore[attr-defined]
        if asked & {"rows", "columns"} and placement.is_shard() and placement.dim != 0:
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


def added_over_ranks(params: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """The sum of equal vectors, one of what lies here of each parameter, over parameters and ranks."""
    sums: dict[tuple[Any, ...], Tensor] = {}
    for param, part in zip(params, parts, strict=True):
        groups = _groups(param) if is_sharded(param) else ()
        sums[groups] = sums[groups] + part if groups in sums else part
    reduced = [_reduce(value, groups) for groups, value in sums.items()]
    return torch.stack([value.to(reduced[0].device) for value in reduced]).sum(0)


class ShardedSums:
    """Sums over all tensors: shards are added over their ranks, whole tensors count once."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.whole: list[tuple[Tensor, ...]] = []
        self.shards: dict[tuple[Any, ...], list[tuple[Tensor, ...]]] = {}
        self.device: dict[tuple[Any, ...], torch.device] = {}

    def add(self, unit: Unit, terms: tuple[Tensor, ...]) -> None:
        """Add a unit's terms, numbers or vectors with one of each member. The empty terms of a shard count, too."""
        if not unit.sharded:
            self.whole.append(terms)
            return
        groups = _groups(unit.first.param)
        self.device[groups] = unit.first.value.device
        self.shards.setdefault(groups, []).append(terms if unit.first.numel else ())

    def result(self) -> tuple[Tensor, ...]:
        """The sums, as 0-d float64 tensors."""
        pieces = [torch.stack([t.double() for t in ts], -1).view(-1, self.width) for ts in self.whole if ts]
        for groups, shards in self.shards.items():
            value = torch.zeros(self.width, dtype=torch.float64, device=self.device[groups])
            for terms in shards:
                if terms:
                    value += torch.stack([t.double() for t in terms])
            pieces.append(_reduce(value, groups)[None])
        return tuple(torch.cat([p.to(pieces[0].device) for p in pieces]).sum(0).unbind())


def sums_of_shards(asked: Sequence[Waiting]) -> list[tuple[list[Tensor], Tensor | None]]:
    """Sums (or largest entries) of each sharded tensor, in one reduction a process group; of rows also the largest."""
    batches: dict[tuple[Any, ...], list[int]] = {}
    for i, w in enumerate(asked):
        batches.setdefault(_groups(w.unit.first.param), []).append(i)
    out: list[Any] = [None] * len(asked)
    for groups, indices in batches.items():
        for largest in (False, True):
            chosen = [i for i in indices if (asked[i].question.kind == "largest") is largest]
            if not chosen:
                continue
            sums = [_sums(asked[i]) for i in chosen]
            flat = _reduce(torch.cat([s.view(-1) for s in sums]), groups, largest)
            for i, part, own in zip(chosen, flat.split([s.numel() for s in sums]), sums, strict=True):
                out[i] = (list(part.view(own.shape).unbind()), None)
        by_row = [i for i in indices if asked[i].question.kind == "rows"]
        if by_row:
            worst = _reduce(torch.stack([_worst(asked[i]) for i in by_row]), groups, largest=True)
            for i, most in zip(by_row, worst.unbind(), strict=True):
                out[i] = (out[i][0], most)
    return out


def _sums(w: Waiting) -> Tensor:
    """One sum, or largest entry, a term; of columns one vector a term."""
    first = w.unit.first
    columns = first.param.numel() // max(first.param.shape[0], 1) if w.question.kind == "columns" else 0
    if not w.terms or not first.numel:
        shape = (w.question.width, columns) if columns else (w.question.width,)
        nothing = -torch.inf if w.question.kind == "largest" else 0.0
        return torch.full(shape, nothing, dtype=torch.float64, device=first.value.device)
    return torch.stack([t.view(-1) if columns else t.sum() for t in w.terms])


def _worst(w: Waiting) -> Tensor:
    if not w.terms or not w.unit.first.numel:
        return torch.tensor(-torch.inf, dtype=torch.float64, device=w.unit.first.value.device)
    assert w.question.solve is not None
    worst: Tensor = w.question.solve(*w.terms).amax().double()
    return worst


def localize(piece: Piece, question: Question, terms: tuple[Tensor, ...], answer: Any) -> Any:
    """The answer of all ranks as this rank's kernel takes it."""
    if question.kind == "total":
        return answer
    if question.kind == "matrix":
        return (answer[0].reshape(piece.p.shape), *answer[1:])
    sums, worst = answer
    dtype = high(piece.p.dtype)
    if question.kind == "rows":
        return Rows(tuple(t.to(dtype) for t in terms), tuple(sums), worst)
    if question.kind == "columns":
        return tuple(s.view(1, -1).to(dtype) for s in sums)
    return tuple(s / piece.first.facts[0] if question.kind == "mean" else s for s in sums)


def matrix_of_shards(w: Waiting) -> tuple[Tensor, ...]:
    """A matrix function of a sharded tensor: gathered, solved on every rank, and this rank's shard kept."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    member = w.unit.first
    param: Any = member.param
    here = member.value
    count = w.question.parts
    values = w.terms[:count]
    if not values or not member.numel:
        values = (torch.zeros(here.shape, dtype=high(here.dtype), device=here.device),) * count

    def whole(part: Tensor) -> Tensor:
        gathered: Tensor = DTensor.from_local(
            part.view(here.shape), param.device_mesh, param.placements,
            run_check=False, shape=param.shape, stride=param.stride(),
        ).full_tensor()  # fmt: skip
        return gathered[None]

    gathered = [whole(part) for part in values]
    if not w.terms:  # no gradient here: the others needed this rank's part, and it needs no answer
        return ()
    first, *more = (t[0] for t in solve(w.question, *gathered, *(t[None] for t in w.terms[count:])))
    shard = distribute_tensor(first, param.device_mesh, param.placements, src_data_rank=None)
    return shard.to_local() if member.numel else here.new_zeros(member.shape, dtype=high(here.dtype)), *more
