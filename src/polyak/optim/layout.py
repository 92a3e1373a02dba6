"""Layout: which tensors go through a kernel together, and as what array.

A large dense tensor is an array of its own, in place. Small tensors keep their memories in flat buffers, and go
through in runs: weights and gradients gathered, weights scattered back. A chain without sums over tensors sees flat
1-D arrays; one with sums sees (rows, columns) where every row belongs to one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from polyak.optim.context import Question
from polyak.optim.rule import Chain, Slot

SMALL = 16 * 1024  # elements up to which copying a tensor costs less than a kernel call of its own
CHUNK = 32 * 1024  # elements of a run, so that gathered weights and gradients stay in cache
STEP = "step"


def local(t: Tensor) -> Tensor:
    """The part of a tensor that lies on this rank (a DTensor's shard; else the tensor), detached."""
    shard = getattr(t, "_local_tensor", None)
    return t.detach() if shard is None else shard.detach()


def pointer_of(t: Tensor) -> int:
    """Where the local part of a tensor begins."""
    return int(getattr(t, "_local_tensor", t).data_ptr())


def is_sharded(t: Tensor) -> bool:
    """Whether a tensor is a DTensor with a sharded placement."""
    return any(not placement.is_replicate() for placement in getattr(t, "placements", ()))


def _is_dense(t: Tensor) -> bool:
    """Whether the elements fill one block of memory, each once (contiguous in some order of dimensions)."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


@dataclass(eq=False)
class Member:
    """One parameter of a group, as the engine sees it."""

    param: Tensor
    index: int
    state: dict[str, Any]
    name: str
    chain: Chain
    questions: tuple[Question, ...]
    value: Tensor = field(init=False)
    sharded: bool = field(init=False)

    def __post_init__(self) -> None:
        self.value = local(self.param)
        self.sharded = is_sharded(self.param)

    @property
    def numel(self) -> int:
        """Elements on this rank."""
        return self.value.numel()

    @property
    def in_rows(self) -> bool:
        """Whether the chain sees this tensor as (rows, columns)."""
        return any(q.kind in ("sum", "mean", "rows") for q in self.questions) or any(
            slot.shape == "scalar" for slot in self.chain.slots
        )

    def columns(self) -> int:
        """The length of a row. Any division will do for sums over the tensor; sums over rows need the real ones."""
        shape, n = self.value.shape, self.numel
        if not n:
            return 1
        if any(q.kind == "rows" for q in self.questions):
            return n // shape[0]
        if n > SMALL and len(shape) > 1 and shape[0] > 1 and n // shape[0] > 1:
            return n // shape[0]
        for width in (64, 16, 4):
            if n % width == 0 and n > width:
                return width
        return n

    def is_direct(self) -> bool:
        """Whether kernels work on the weight in place."""
        if self.numel <= SMALL or not _is_dense(self.value):
            return False
        if any(q.kind == "matrix" for q in self.questions):
            return self.value.is_contiguous()
        strides = self.value.stride()
        return not self.in_rows or len(strides) == 0 or strides[0] == max(strides)

    def stack_key(self) -> tuple[Any, ...]:
        """Tensors of equal key may share a run."""
        key: tuple[Any, ...] = (self.chain, self.value.dtype, self.value.device)
        if any(q.kind == "matrix" for q in self.questions):
            key += (self.value.shape,)
        if self.in_rows:
            key += (self.columns(),)
        if self.sharded and self.questions:
            key += (self.index,)  # its sums cross ranks: never gathered with others
        return key


class Unit:
    """Members that go through a kernel together: one in place, or several gathered.

    ``memories`` holds one array a slot: shaped like the weights' array, or one number a member.
    """

    def __init__(self, members: Sequence[Member], memories: list[Tensor], direct: bool) -> None:
        first = members[0]
        self.members = list(members)
        self.chain, self.questions = first.chain, first.questions
        self.direct = direct
        self.sharded = first.sharded
        self.values = [m.value for m in members]
        self.numel = sum(m.numel for m in members)
        self.width = first.columns() if first.in_rows and self.numel else 0
        self.shape = (self.numel // self.width, self.width) if self.width else (self.numel,)
        self.compilable = all(size > 1 for size in self.shape)
        self.buffers = memories
        slots = self.chain.slots
        self.memories = [m if s.shape == "scalar" else self._array(m) for s, m in zip(slots, memories, strict=True)]
        self.array = self._array(self.values[0]) if direct else None
        self.flats = [v.view(-1) for v in self.values] if all(v.is_contiguous() for v in self.values) else None
        self.lengths = [m.numel for m in self.members]
        self.kernels: dict[Any, Any] = {}
        self._runs: dict[tuple[int, int], Unit] = {}
        if self.width:
            self._index_rows()

    def _array(self, t: Tensor) -> Tensor:
        """A dense tensor as an array. Detached last: to the compiler a view of something is another kind of tensor."""
        flat = t.view(-1) if t.is_contiguous() else t.as_strided((t.numel(),), (1,))
        return flat.view(self.shape).detach()

    def _index_rows(self) -> None:
        device = self.values[0].device
        counts = torch.tensor([m.numel // self.width for m in self.members])
        self.owner = torch.repeat_interleave(counts).to(device)
        self.first_row = (counts.cumsum(0) - counts).to(device)
        sizes = torch.tensor([m.param.numel() for m in self.members], dtype=torch.float64, device=device)
        self.sizes = sizes[:, None]
        dtype = torch.float32 if self.values[0].dtype.itemsize < 4 else self.values[0].dtype
        self.count = self.spread(self.sizes).to(dtype)

    def spread(self, per_member: Tensor) -> Tensor:
        """One value a member -> a dense column with one a row."""
        return per_member[self.owner]

    def combine(self, column: Tensor) -> Tensor:
        """A column of row sums -> one float64 sum a member."""
        if len(self.members) == 1:
            return column.sum(0, keepdim=True, dtype=torch.float64)
        out = torch.zeros(len(self.members), 1, dtype=torch.float64, device=column.device)
        return out.index_add_(0, self.owner, column.double())

    def largest(self, column: Tensor) -> Tensor:
        """A column -> the largest entry of each member."""
        if len(self.members) == 1:
            return column.amax(0, keepdim=True)
        out = torch.zeros(len(self.members), 1, dtype=column.dtype, device=column.device)
        return out.scatter_reduce_(0, self.owner[:, None], column, "amax", include_self=False)

    def run(self, start: int, stop: int) -> Unit:
        """The members ``start:stop`` as a unit of their own, on the same buffers."""
        if (start, stop) == (0, len(self.members)):
            return self
        found = self._runs.get((start, stop))
        if found is None:
            ends = [0]
            for member in self.members:
                ends.append(ends[-1] + member.numel)
            parts = [
                b[start:stop] if s.shape == "scalar" else b[ends[start] : ends[stop]]
                for s, b in zip(self.chain.slots, self.buffers, strict=True)
            ]
            found = self._runs[start, stop] = Unit(self.members[start:stop], parts, direct=False)
        return found

    def weights(self) -> Tensor:
        """The weights as an array: in place if direct, else a gathered copy."""
        if self.array is not None:
            return self.array
        if self.flats is None:
            return self._array(flatten(self.values))
        return self._array(torch.cat(self.flats))

    def gradients(self, grads: Sequence[Tensor]) -> Tensor:
        """The gradients as an array whose elements pair with those of the weights."""
        if not self.direct:
            return self._array(flatten(grads))
        g, value = grads[0], self.values[0]
        if g.stride() != value.stride():
            g = torch.empty_like(value, dtype=g.dtype).copy_(g)
        return self._array(g)

    def scatter(self, weights: Tensor) -> None:
        """Write a gathered copy of the weights back."""
        if self.direct:
            return
        if self.flats is None:
            parts = torch._utils._unflatten_dense_tensors(weights.view(-1), self.values)
            torch._foreach_copy_(self.values, list(parts))
        else:
            torch.split_with_sizes_copy(weights.view(-1), self.lengths, out=self.flats)

    def columns_of(self) -> list[Tensor]:
        """The memories as kernels take them: one-number memories spread to a column."""
        slots = self.chain.slots
        return [
            self.spread(m[:, None]) if s.shape == "scalar" else m for s, m in zip(slots, self.memories, strict=True)
        ]

    def keep_columns(self, arrays: list[Tensor]) -> None:
        """Write one-number memories back from their columns."""
        for slot, memory, array in zip(self.chain.slots, self.memories, arrays, strict=True):
            if slot.shape == "scalar":
                memory.copy_(array[self.first_row, 0])

    def chunks(self) -> Iterator[slice]:
        """Slices of the first dimension, of about ``CHUNK`` elements each."""
        step = max(1, CHUNK // (self.width or 1))
        for start in range(0, self.shape[0], step):
            yield slice(start, min(start + step, self.shape[0]))


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """A contiguous 1-D copy of tensors, one after the other, each in its logical order."""
    flat: Tensor = torch._utils._flatten_dense_tensors(tensors)
    return flat


def new_memory(slot: Slot, member: Member) -> Tensor:
    """A fresh memory of one parameter, laid out like it (a DTensor for a DTensor)."""
    dtype = slot.dtype_for(member.value.dtype)
    if slot.shape == "scalar":
        return torch.full((), slot.initial, dtype=dtype, device=member.value.device)
    return torch.full_like(member.param.detach(), slot.initial, dtype=dtype, requires_grad=False)


def wrap(part: Tensor, param: Tensor) -> Tensor:
    """A piece of a flat buffer as the memory of ``param``: its shape, and a DTensor for a DTensor."""
    view = part.view(local(param).shape)
    if not hasattr(param, "placements"):
        return view
    from torch.distributed.tensor import DTensor

    sharded: Any = param
    return DTensor.from_local(
        view, sharded.device_mesh, sharded.placements, run_check=False, shape=param.shape, stride=param.stride()
    )


def _adopt(slot: Slot, member: Member) -> Tensor:
    """The member's existing memory, made fit for in-place use (dtype, device, density)."""
    memory: Tensor = member.state[slot.name]
    here = local(memory)
    dtype = slot.dtype_for(member.value.dtype)
    fits = here.dtype == dtype and here.device == member.value.device
    if slot.shape == "param":
        fits = fits and here.stride() == member.value.stride()
    if not fits or here.untyped_storage().nbytes() > here.numel() * here.itemsize:
        replacement = new_memory(slot, member)
        local(replacement).copy_(here)
        member.state[slot.name] = memory = replacement
    return local(memory)


def build_units(members: list[Member], gather: bool) -> list[Unit]:
    """Give every member its memories and divide the members into units.

    With ``gather`` small members share buffers; without, each is a unit of its own (execution="eager").
    """
    units: list[Unit] = []
    stacks: dict[Any, list[Member]] = {}
    for member in members:
        for slot in member.chain.slots:
            if slot.name not in member.state:
                member.state[slot.name] = new_memory(slot, member)
        if member.is_direct():
            memories = [_adopt(slot, member) for slot in member.chain.slots]
            scalar = [
                m.view(1) if s.shape == "scalar" else m for s, m in zip(member.chain.slots, memories, strict=True)
            ]
            units.append(Unit([member], scalar, direct=True))
        else:
            key = member.stack_key() if gather else member.index
            stacks.setdefault(key, []).append(member)
    for stack in stacks.values():
        units += [_stack(run) for run in _cut(stack)]
    return units


def _cut(members: list[Member]) -> Iterator[list[Member]]:
    run: list[Member] = []
    size = 0
    for member in members:
        if run and size + member.numel > CHUNK:
            yield run
            run, size = [], 0
        run.append(member)
        size += member.numel
    yield run


def _stack(members: list[Member]) -> Unit:
    buffers = []
    for slot in members[0].chain.slots:
        dtype = slot.dtype_for(members[0].value.dtype)
        length = len(members) if slot.shape == "scalar" else sum(m.numel for m in members)
        buffer = torch.empty(length, dtype=dtype, device=members[0].value.device)
        sizes = [1] * length if slot.shape == "scalar" else [m.numel for m in members]
        for member, part in zip(members, buffer.split(sizes) if sizes else (), strict=True):
            part.view(-1).copy_(local(member.state[slot.name]).reshape(-1))
            member.state[slot.name] = part.view(()) if slot.shape == "scalar" else wrap(part, member.param)
        buffers.append(buffer)
    return Unit(members, buffers, direct=False)
