"""How memories are kept between steps, and how a half-precision weight is written: properties of a slot and of a group.

A kernel reads what is kept, and writes it, in the pass that computes; no rule knows of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from polyak.aot import Array
from polyak.memory.codecs import BLOCK, Codec, codec
from polyak.memory.rounding import kahan_add, round_stochastic
from polyak.memory.storage import square_shape
from polyak.optim.engine.chain import Chain
from polyak.optim.engine.rule import Slot

Rounding = Literal["nearest", "stochastic", "kahan"]
Storage = Literal["float32", "bfloat16", "int8", "factored"]
Layout = Literal["flat", "rows", "blocks", "square"]
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "stochastic", "kahan")
STORAGES: tuple[Storage, ...] = ("float32", "bfloat16", "int8", "factored")
KAHAN = "kahan"
"""The state's key of what a half-precision weight could not hold."""


@dataclass(frozen=True)
class Kept:
    """One memory as it is kept: in the tensors ``optimizer.state[p][key]`` for each of ``keys``.

    Args:
        slot: the memory.
        form: the codec; None for a tensor in the slot's own dtype.
        suffixes: of the names of the codec's tensors.
    """

    slot: Slot
    form: Codec | None = None
    suffixes: tuple[str, ...] = ("",)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names in ``optimizer.state[p]``."""
        return tuple(self.slot.name + suffix for suffix in self.suffixes)

    @property
    def whole(self) -> tuple[bool, ...]:
        """Of each key whether its tensor is laid out like the weight."""
        return tuple(self.slot.shape == "param" and not suffix for suffix in self.suffixes)

    @property
    def in_order(self) -> bool:
        """Whether it is kept in the order of a contiguous weight: its tensors together, not each number, hold it."""
        return self.form is not None and self.whole != (True,)

    @property
    def draws(self) -> bool:
        """Whether keeping it rounds at random."""
        return self.form is not None and self.form.name != "factored"

    def decode(self, parts: Sequence[Tensor], dtype: torch.dtype, like: Tensor) -> Tensor:
        """The memory as the rule sees it, broadcastable against the weight's array ``like``."""
        if self.form is not None:
            flat = [t.reshape(-1) for t in parts]
            return self.form.decode(flat, like.numel()).reshape(like.shape).to(dtype)
        value = parts[0].to(dtype)
        if self.slot.shape == "row":
            return value[:, None]
        return value[None] if self.slot.shape == "column" else value

    def write(self, parts: Sequence[Tensor], value: Tensor, seed: Tensor | None) -> None:
        """Keep a new value."""
        if self.form is None:
            parts[0].copy_(value.reshape(parts[0].shape) if self.slot.shape in ("row", "column") else value)
            return
        if self.form.name != "factored":  # whose factors are in the memory's own dtype
            value = value.float()
        shape = square_shape(value.numel()) if self.form.name == "factored" else (-1,)
        encoded = self.form.encode(value.reshape(shape), _seeded(seed))
        for part, new in zip(parts, encoded, strict=True):
            part.copy_(new.reshape(part.shape))

    def arrays(self, weight: torch.dtype, whole: tuple[str | int, ...]) -> Iterator[Array]:
        """The parts as a kernel takes them."""
        if self.form is None:
            dims: dict[Any, tuple[str | int, ...]] = {"param": whole, "scalar": (), "row": ("rows",)}
            yield Array(self.slot.dtype_for(weight), dims.get(self.slot.shape, ("columns",)))
            return
        for suffix, (_, dtype) in self.form.parts(BLOCK * BLOCK).items():
            yield Array(dtype, ("blocks",) if suffix else whole)

    def new(self, param: Tensor) -> dict[str, Tensor]:
        """Fresh tensors."""
        slot = self.slot
        dtype, initial = slot.dtype_for(param.dtype), slot.initial
        if callable(initial):
            return {slot.name: initial(slot.shape_for(param.shape)).to(param.device, dtype, copy=True)}
        if slot.shape != "param":
            return {slot.name: torch.full(slot.shape_for(param.shape), initial, dtype=dtype, device=param.device)}
        if self.form is None:
            return {slot.name: torch.full_like(param.detach(), initial, dtype=dtype, requires_grad=False)}
        made = {}
        for suffix, (shape, dtype) in self.form.parts(param.numel()).items():
            zeros = torch.zeros(shape, dtype=dtype, device=param.device)
            alike = not suffix and not self.in_order
            made[slot.name + suffix] = (
                torch.zeros_like(param.detach(), dtype=dtype) if alike else zeros.view(shape if suffix else param.shape)
            )
        return made

    def holds(self, state: dict[str, Any], param: Tensor) -> bool:
        """Whether a state has the memory in this form, wherever and in whatever order of dimensions it lies."""
        if any(key not in state for key in self.keys):
            return False
        found = [(tuple(state[key].shape), state[key].dtype) for key in self.keys]
        if self.form is None:
            return found == [(self.slot.shape_for(param.shape), self.slot.dtype_for(param.dtype))]
        parts = self.form.parts(param.numel()).items()
        return found == [(shape if suffix else tuple(param.shape), dtype) for suffix, (shape, dtype) in parts]

    def fits(self, state: dict[str, Any], param: Tensor) -> bool:
        """Whether the memory in a state can be worked on as it is."""
        if not self.holds(state, param) or any(state[key].device != param.device for key in self.keys):
            return False
        if self.in_order:
            return all(state[key].is_contiguous() for key in self.keys)
        return all(is_laid_like(state[key], param) for key, whole in zip(self.keys, self.whole, strict=True) if whole)

    def adopt(self, state: dict[str, Any], param: Tensor) -> None:
        """Bring a memory that a state holds in the slot's own shape into the form in which it is kept."""
        name, shape = self.slot.name, self.slot.shape_for(param.shape)
        if tuple(state[name].shape) != tuple(shape):
            raise RuntimeError(f"{name} has shape {tuple(state[name].shape)}, a weight like this needs {tuple(shape)}")
        old, fresh = state.pop(name), self.new(param)
        if len(self.suffixes) == 1 and name in fresh:  # one tensor, number by number
            fresh[name].copy_(old)
        elif self.form is not None:
            laid = old.to(param.device).reshape(-1)
            value = laid.view(square_shape(param.numel())) if self.form.name == "factored" else laid
            parts = [t.view(-1) for t in fresh.values()]
            self.write(parts, value, torch.zeros((), dtype=torch.int64, device=param.device))
        state.update(fresh)

    def read(self, state: dict[str, Any], param: Tensor) -> Tensor:
        """The memory in the slot's own shape and dtype, paired with the elements that it was made for."""
        dtype = self.slot.dtype_for(param.dtype)
        if not self.in_order:
            memory: Tensor = state[self.slot.name]
            return memory.to(dtype)
        assert self.form is not None
        flat = self.form.decode([state[key].reshape(-1) for key in self.keys], param.numel())
        return flat.to(dtype).view(param.shape)


def _seeded(seed: Tensor | None) -> Tensor:
    return torch.zeros((), dtype=torch.int64) if seed is None else seed


@dataclass(frozen=True)
class Keeping:
    """How a parameter group keeps memories and writes weights."""

    storage: Storage = "float32"
    rounding: Rounding = "nearest"

    def of(self, chain: Chain, param: Tensor) -> tuple[Kept, ...]:
        """How the memories of a parameter are kept."""
        return tuple(self._kept(slot, param) for slot in chain.slots)

    def _kept(self, slot: Slot, param: Tensor) -> Kept:
        if self.storage == "float32" or slot.average is None or slot.shape != "param":
            return Kept(slot)
        if not slot.narrow(param.shape):
            return Kept(slot)
        form = codec(self.storage, slot.average == "signed", slot.dtype_for(param.dtype))
        if not form.fits(param.numel()) or (self.storage != "bfloat16" and hasattr(param, "placements")):
            return Kept(slot)  # small tensors, and shards of tensors, in the slot's own dtype
        return Kept(slot, form, tuple(form.parts(param.numel())))

    def rounding_of(self, dtype: torch.dtype) -> Rounding:
        """How a weight of this dtype is written; only half precision needs more than rounding to nearest."""
        if self.rounding == "kahan":
            return "kahan" if dtype == torch.bfloat16 else "nearest"
        return self.rounding if dtype.itemsize < 4 else "nearest"

    def complete(self, kept: Sequence[Kept], state: dict[str, Any], param: Tensor) -> None:
        """Make the memories that a state lacks, and bring those that do not fit into their form."""
        for one in kept:
            if one.fits(state, param):
                continue
            _unpack(one.slot, state, param)
            if one.slot.name in state:
                one.adopt(state, param)
            else:
                state.update(one.new(param))
        self._complete_kahan(state, param)

    def _complete_kahan(self, state: dict[str, Any], param: Tensor) -> None:
        """What the weight could not hold, laid out like it; of another weight, or no longer kept up, it is stale."""
        if self.rounding_of(param.dtype) != KAHAN:
            state.pop(KAHAN, None)
            return
        lost: Tensor | None = state.get(KAHAN)
        if lost is None or lost.shape != param.shape:
            state[KAHAN] = torch.zeros_like(param.detach(), requires_grad=False)
        elif lost.dtype != param.dtype or lost.device != param.device or not is_laid_like(lost, param):
            state[KAHAN] = torch.zeros_like(param.detach(), requires_grad=False).copy_(lost)


def is_laid_like(t: Tensor, param: Tensor) -> bool:
    """Whether a tensor has the shape of a weight, and the strides that a new tensor like it has."""
    if t.shape != param.shape or t.stride() == param.stride():
        return t.shape == param.shape
    if hasattr(param, "placements"):
        return False
    return t.stride() == torch.empty_like(param, device="meta").stride()  # where the weight has gaps


def forms_of(slot: Slot, param: Tensor) -> Iterator[Kept]:
    """All forms in which a state may hold a memory."""
    return (Keeping(storage)._kept(slot, param) for storage in STORAGES)


def held_as(slot: Slot, state: dict[str, Any], param: Tensor) -> Kept | None:
    """The form in which a state holds a memory, if it does."""
    return next((one for one in forms_of(slot, param) if one.holds(state, param)), None)


def _unpack(slot: Slot, state: dict[str, Any], param: Tensor) -> None:
    """Bring a memory that is kept in some other form into the slot's own."""
    held = held_as(slot, state, param)
    if held is not None and held.form is not None:
        value = held.read(state, param)
        for key in held.keys:
            del state[key]
        state[slot.name] = value


@functools.cache
def layout_of(kept: tuple[Kept, ...], in_rows: bool) -> Layout:
    """The arrays that a chain and the way its memories are kept ask for."""
    if in_rows:
        return "rows"
    names = {one.form.name for one in kept if one.form is not None}
    return "square" if "factored" in names else "blocks" if "int8" in names else "flat"


def write_weight(p: Tensor, w: Tensor, rounding: Rounding, seed: Tensor | None, extra: Tensor | None) -> None:
    """Write a weight in its own dtype."""
    if rounding == "stochastic":
        p.copy_(round_stochastic(w.reshape(-1), p.dtype, _seeded(seed)).reshape(p.shape))
    elif extra is not None:
        weight, lost = kahan_add(p, extra, w)
        extra.copy_(lost)
        p.copy_(weight)
    else:
        p.copy_(w)
