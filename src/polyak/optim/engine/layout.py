"""Layout: which tensors go through a kernel together, and as what array.

A large dense tensor is an array of its own, in place. Small tensors keep their memories in flat buffers, and go
through in runs: weights and gradients gathered, weights scattered back. A chain without sums over tensors sees flat
1-D arrays; one with sums sees (rows, columns) where every row belongs to one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from polyak.optim.engine.direct import Prepared
from polyak.optim.engine.member import Member

CHUNK = 20 * 1024  # elements of a run: what is gathered and computed for one stays in cache
SLICE = 12 * 1024  # elements at a time without a compiler, where every operation makes an array


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
        self.device, self.strides = self.values[0].device, self.values[0].stride()
        self.has_scalars = any(slot.shape == "scalar" for slot in slots)
        self.scratch: Tensor | None = None
        self.gathered: Tensor | None = None
        self.pieces: list[Tensor] = []
        self.indices = [m.index for m in self.members]
        self.kernels: dict[Any, Any] = {}
        self.prepared: dict[Any, Any] = {}
        self._runs: dict[tuple[int, int], Unit] = {}
        self.count: Tensor | None = None  # elements of a row's whole tensor, as a column
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

    def cut(self, spans: Sequence[tuple[int, int]]) -> list[Unit]:
        """The members of each span as a unit of their own, on the same buffers; those of the last cut are kept."""
        self._runs = {span: self._runs.get(span) or self._run(*span) for span in spans}
        return list(self._runs.values())

    def _run(self, start: int, stop: int) -> Unit:
        if (start, stop) == (0, len(self.members)):
            return self
        ends = [0]
        for member in self.members:
            ends.append(ends[-1] + member.numel)
        parts = [
            b[start:stop] if s.shape == "scalar" else b[ends[start] : ends[stop]]
            for s, b in zip(self.chain.slots, self.buffers, strict=True)
        ]
        made = Unit(self.members[start:stop], parts, direct=False)
        if self.scratch is not None:
            made.use_scratch(self.scratch)
        return made

    def weights(self) -> Tensor:
        """The weights as an array: in place if direct, else a gathered copy."""
        if self.array is not None:
            return self.array
        if self.flats is None or self.scratch is None or self.gathered is None:
            return self._array(flatten(self.values))
        torch.cat(self.flats, out=self.scratch)
        return self.gathered

    def gradients(self, grads: Sequence[Tensor]) -> Tensor:
        """The gradients as an array whose elements pair with those of the weights."""
        if not self.direct:
            return self._array(flatten(grads))
        g = grads[0]
        if g.stride() != self.strides:
            g = torch.empty_like(self.values[0], dtype=g.dtype).copy_(g)
        return self._array(g.resolve_neg())

    def scatter(self, weights: Tensor) -> None:
        """Write a gathered copy of the weights back."""
        if self.direct:
            return
        if weights is self.gathered and self.flats is not None:
            torch._foreach_copy_(self.flats, self.pieces)
        else:
            parts = torch._utils._unflatten_dense_tensors(weights.view(-1), self.values)
            torch._foreach_copy_(self.values, list(parts))

    def step_gathered(self, call: Prepared, g: Tensor, scalars: Tensor) -> None:
        """The whole step of gathered members by a prepared call."""
        weights = self.weights()
        call(g, scalars)
        self.scatter(weights)

    def bare_gradients(self, grads: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
        """As :meth:`gradients` with one view, for a graph; None if it takes more than that, or has another dtype."""
        g = grads[0] if self.direct else flatten(grads)
        if g.dtype is not dtype:
            return None
        if not self.direct:
            return g.view(self.shape)
        if g.stride() != self.strides or g.is_neg():
            return None
        return g.as_strided(self.shape, (self.width, 1) if self.width else (1,))

    def use_scratch(self, scratch: Tensor) -> None:
        """Gather the weights into ``scratch``, which units share, since they run one after the other."""
        self.scratch = scratch[: self.numel]
        self.gathered = self._array(self.scratch)
        self.pieces = list(self.scratch.split([m.numel for m in self.members]))

    def columns_of(self) -> list[Tensor]:
        """The memories as kernels take them: one-number memories spread to a column."""
        if not self.has_scalars:
            return self.memories
        slots = self.chain.slots
        return [
            self.spread(m[:, None]) if s.shape == "scalar" else m for s, m in zip(slots, self.memories, strict=True)
        ]

    def keep_columns(self, arrays: list[Tensor]) -> None:
        """Write one-number memories back from their columns."""
        if not self.has_scalars:
            return
        for slot, memory, array in zip(self.chain.slots, self.memories, arrays, strict=True):
            if slot.shape == "scalar":
                memory.copy_(array[self.first_row, 0])

    def chunks(self) -> Iterator[slice]:
        """Slices of the first dimension, of about ``SLICE`` elements each."""
        step = max(1, SLICE // (self.width or 1))
        for start in range(0, self.shape[0], step):
            yield slice(start, min(start + step, self.shape[0]))


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """A contiguous 1-D copy of tensors, one after the other, each in its logical order."""
    flat: Tensor = torch._utils._flatten_dense_tensors(tensors)
    return flat
