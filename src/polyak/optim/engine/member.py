"""One parameter as the engine sees it: what lies on this rank, its memories, and the arrays that a kernel takes."""

from __future__ import annotations

from array import array
from typing import Any

import torch
from torch import Tensor

from polyak import aot
from polyak.memory.codecs import BLOCK
from polyak.memory.storage import square_shape
from polyak.optim.engine.chain import Chain
from polyak.optim.engine.context import Question
from polyak.optim.engine.keeping import KAHAN, Keeping, layout_of

STEP = "step"
STEPS = "steps"
"""The option of a group that counts the optimizer's steps, where its chain reads them."""
SMALL = 16 * 1024
"""Elements up to which one thread is best, and up to which gathering costs less than a call of its own."""


def local(t: Any) -> Tensor:
    """The part of a tensor that lies on this rank (a DTensor's shard; else the tensor), detached."""
    here: Tensor = t.to_local() if hasattr(t, "placements") else t
    if hasattr(here, "trigger_wait"):  # what a collective is still filling
        here = here.trigger_wait()
    return here.detach()


def placed_like(g: Any, p: Any) -> Tensor:
    """The part of a gradient that belongs to the part of a parameter that lies on this rank."""
    if getattr(g, "placements", None) != getattr(p, "placements", None):
        g = g.redistribute(placements=p.placements)
    return local(g)


def name_of(group: dict[str, Any], index: int, i: int) -> str:
    """What messages call parameter ``i`` of the group ``index``."""
    given = group.get("param_names")
    return str(given[i]) if given else f"parameter {i} of group {index}"


def is_sharded(t: Tensor) -> bool:
    """Whether a tensor is a DTensor with a sharded placement."""
    return any(not placement.is_replicate() for placement in getattr(t, "placements", ()))


def is_dense(t: Tensor) -> bool:
    """Whether the elements fill one block of memory, each once (contiguous in some order of dimensions)."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def holds_nothing(t: Tensor) -> bool:
    """Whether a tensor has no values (meta and fake tensors): they cannot be read, and have no address."""
    return t.untyped_storage().device.type == "meta"


def is_misaligned(t: Tensor) -> bool:
    """Whether a package would work on an aligned copy of a tensor, and write to that."""
    return t.device.type == "cuda" and t.data_ptr() % 16 != 0


class Member:
    """One parameter of a group.

    Args:
        param: the parameter.
        index: its place in the group.
        name: what errors call it.
        chain: the rules that apply to it.
        questions: what they ask.
        keeping: how memories are kept.
        salt: a number of its own, for random rounding.
    """

    def __init__(
        self,
        param: Tensor,
        index: int,
        name: str,
        chain: Chain,
        questions: tuple[Question, ...],
        keeping: Keeping,
        salt: int,
    ) -> None:
        self.param, self.index, self.name, self.chain, self.questions = param, index, name, chain, questions
        self.salt = salt
        self.value = local(param)
        self.strides = self.value.stride()
        self.sharded = is_sharded(param)
        self.kept = keeping.of(chain, param)
        self.layout = layout_of(self.kept, chain.in_rows(questions))
        self.rounding = keeping.rounding_of(param.dtype)
        self.draws = self.rounding == "stochastic" or any(kept.draws for kept in self.kept)
        self.keys = [key for kept in self.kept for key in kept.keys]
        self._whole = [whole for kept in self.kept for whole in kept.whole]
        if self.rounding == "kahan":
            self.keys.append(KAHAN)
            self._whole.append(True)
        self.asks_matrices = any(q.kind == "matrix" for q in questions)
        self.direct = self._is_direct()
        self.keeping = keeping
        self.counter: Any = None  # an array of one float, or where processes share it a tensor
        self.shape = self._array_shape()
        if not self.numel:
            # of a sharded tensor nothing lies here: zeros, which add nothing to any sum, take part in its stead, so
            # that memories of one number, or of one for each column, follow those of the other ranks
            columns = max(self.value.shape[1:].numel(), 1)
            self.shape = (1, columns) if self.layout == "rows" else (1,) * len(self.shape)
        self.asks_totals = any(q.kind == "total" for q in questions)
        by_kernels = all(q.is_local or q.kind == "total" for q in questions) and not (self.sharded and questions)
        # seeds belong to a whole tensor, and so do packed signs and what flows through a layer
        self.uncut = self.draws or any(kept.form for kept in self.kept) or not chain.is_compilable
        self.by_calls = self.direct and self.is_compilable and by_kernels
        self.crossing = False

    @property
    def one_call(self) -> bool:
        """Whether a step is one call of a compiled kernel; ``by_calls``: or several, between which totals are found."""
        return self.by_calls and not self.asks_totals

    @property
    def numel(self) -> int:
        """Elements on this rank."""
        return self.value.numel()

    def _is_direct(self) -> bool:
        """Whether kernels work on the weight in place."""
        if not self.numel or not is_dense(self.value) or self.value.is_neg():
            return False
        if is_misaligned(self.value):
            return False
        # what flows through a layer, and memories of shapes of their own, go with columns in their order
        if self.asks_matrices or not self.chain.is_compilable or any(kept.in_order for kept in self.kept):
            return self.value.is_contiguous()
        return self.layout != "rows" or not self.strides or self.strides[0] == max(self.strides)

    def _array_shape(self) -> tuple[int, ...]:
        if self.layout == "rows":
            rows = self.value.shape[0] if self.value.ndim else 1
            return (rows, self.numel // rows if rows else 0)
        if self.layout == "blocks":
            return (self.numel // BLOCK, BLOCK)
        return square_shape(self.numel) if self.layout == "square" and self.numel else (self.numel,)

    @torch.inference_mode(False)
    def bind(self, state: dict[str, Any]) -> None:
        """Take the memories from ``optimizer.state[param]``; those that are missing are made."""
        self.state = state
        self.keeping.complete(self.kept, self.state, self.param)
        self.memories = [self.state[key] for key in self.keys]
        if any(is_misaligned(local(memory)) for memory in self.memories):
            self.direct = self.by_calls = False
        self.array = self.as_array(self.value)
        self._take_parts()
        facts = torch.tensor([self.param.numel(), self.salt], dtype=torch.float64, device="cpu")
        self.facts = facts.to(self.value.device)
        self.by_calls = self.by_calls and aot.usable([self.array, *self.parts])
        if self.chain.timed or self.draws:
            # a counter of its own, 0-d and float32 like torch's, that Python reads and writes without a call into torch
            before, fresh = self.state.get(STEP, 0.0), torch.zeros((), device="cpu")
            if holds_nothing(fresh):  # under a fake mode
                self.counter, self.state[STEP] = array("f", [0.0]), fresh
            elif isinstance(before, Tensor) and before.device == fresh.device and before.is_shared():
                self.counter = before.view(1)  # other processes count along
            else:
                self.counter = array("f", [float(before)])
                self.state[STEP] = torch.frombuffer(self.counter, dtype=torch.float32)[0]

    def _take_parts(self) -> None:
        here = [local(m) for m in self.memories]
        self.parts = [self.as_array(t) if whole else t for t, whole in zip(here, self._whole, strict=True)]

    def as_array(self, t: Tensor) -> Tensor:
        """A tensor laid out like the weight as the array that kernels see; where that has gaps, a copy."""
        if not self.numel:
            return t.new_zeros(self.shape)
        if not self.direct or t.is_contiguous():
            array = t.resolve_neg().reshape(self.shape).contiguous()
            return array.clone() if is_misaligned(array) else array
        return t.as_strided(self.shape, (self.shape[-1], 1)[-len(self.shape) :])

    def gradient(self, g: Tensor) -> Tensor:
        """A gradient as an array whose elements pair with those of the weight's."""
        if self.direct and g.stride() != self.strides:
            g = torch.empty_like(self.value, dtype=g.dtype).copy_(g)
        return self.as_array(g.resolve_neg())

    def set_crossing(self) -> None:
        """Share memory with another weight: steps are made in the order of the parameters, whatever the mode."""
        self.crossing, self.by_calls = True, False

    def settle_copies(self) -> None:
        """Write back what the kernel worked on in copies."""
        if self.direct or not self.numel:
            return
        for target, source in zip((self.param, *self.memories), (self.array, *self.parts), strict=True):
            here = local(target)
            if here.data_ptr() != source.data_ptr():
                here.copy_(source.view(here.shape))

    def refresh_copies(self) -> None:
        """Copy weight and memories anew, where kernels do not work in place."""
        if not self.direct and self.numel:
            self.array = self.as_array(self.value)
            self._take_parts()

    @property
    def is_compilable(self) -> bool:
        """Whether kernels of it can be compiled.

        To a compiler a size of 1 is special, since it might be stretched; a flat array meets nothing but its like.
        """
        # nor does a compiler see through packed signs, or that the size of rows is one of blocks
        forms = {kept.form.name for kept in self.kept if kept.form is not None}
        sized = "factored" not in forms and not (self.layout == "rows" and "int8" in forms)
        long = self.numel > 0 if self.layout == "flat" else all(size > 1 for size in self.shape)
        return long and self.chain.is_compilable and sized

    @property
    def time(self) -> float:
        """Steps so far."""
        return float(self.counter[0]) if self.counter is not None else 0.0
