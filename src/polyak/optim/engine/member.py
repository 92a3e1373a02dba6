"""One parameter as the engine sees it: what lies on this rank, and how its chain wants to see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from polyak.optim.engine.context import Question
from polyak.optim.engine.rule import Chain

SMALL = 16 * 1024  # elements up to which copying a tensor costs less than a kernel call of its own
LONGEST_ROW = 4096  # elements: rows of a chain that only sums over tensors are cut where it likes
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
        # few widths for small tensors, so that many go together; long rows for large ones, so that columns stay short
        widths = (64, 16, 4) if n <= SMALL else range(LONGEST_ROW, 1, -1)
        return next((width for width in widths if n % width == 0 and n > width), n)

    def is_direct(self) -> bool:
        """Whether kernels work on the weight in place."""
        if self.numel <= SMALL or not _is_dense(self.value):
            return False
        if any(q.kind == "matrix" for q in self.questions):
            return self.value.is_contiguous()
        strides = self.value.stride()
        return not any(q.kind == "rows" for q in self.questions) or strides[0] == max(strides)

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
