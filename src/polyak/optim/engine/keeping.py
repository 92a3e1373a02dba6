"""How memories are kept between steps, and how a half-precision weight is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from polyak.aot import Array
from polyak.optim.engine.rule import Chain, Slot

if TYPE_CHECKING:
    from polyak.optim.engine.member import Member

Rounding = Literal["nearest", "stochastic", "kahan"]
Storage = Literal["float32", "bfloat16", "int8", "factored"]
ROUNDINGS = ("nearest", "stochastic", "kahan")
STORAGES = ("float32", "bfloat16", "int8", "factored")
KAHAN = "kahan"


@dataclass(frozen=True)
class Kept:
    """One memory as it is kept: in the tensors ``optimizer.state[p][key]`` for each of ``keys``."""

    slot: Slot

    @property
    def keys(self) -> tuple[str, ...]:
        """Names in ``optimizer.state[p]``."""
        return (self.slot.name,)

    @property
    def is_whole(self) -> bool:
        """Whether its tensors are laid out like the weight."""
        return self.slot.shape == "param"

    @property
    def draws(self) -> bool:
        """Whether keeping it rounds at random."""
        return False

    def decode(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The memory as the rule sees it, broadcastable against the weight's array."""
        value = parts[0].to(dtype)
        if self.slot.shape == "row":
            return value[:, None]
        return value[None] if self.slot.shape == "column" else value

    def write(self, parts: Sequence[Tensor], value: Tensor, seed: Tensor | None, salt: int) -> None:
        """Keep a new value."""
        parts[0].copy_(value.reshape(parts[0].shape) if self.slot.shape in ("row", "column") else value)

    def arrays(self, weight: torch.dtype, whole: tuple[str | int, ...]) -> Iterator[Array]:
        """The parts as a kernel takes them."""
        dims: dict[Any, tuple[str | int, ...]] = {"param": whole, "scalar": (), "row": ("rows",)}
        yield Array(self.slot.dtype_for(weight), dims.get(self.slot.shape, ("columns",)))

    def new(self, param: Tensor) -> dict[str, Tensor]:
        """Fresh tensors."""
        slot, dtype = self.slot, self.slot.dtype_for(param.dtype)
        if slot.shape == "param":
            fresh = torch.full_like(param.detach(), slot.initial, dtype=dtype, requires_grad=False)
        else:
            fresh = torch.full(slot.shape_for(param.shape), slot.initial, dtype=dtype, device=param.device)
        return {slot.name: fresh}

    def fits(self, state: dict[str, Any], param: Tensor) -> bool:
        """Whether the memory in a state can be worked on as it is."""
        memory, dtype = state[self.slot.name], self.slot.dtype_for(param.dtype)
        if memory.dtype != dtype or memory.device != param.device:
            return False
        return self.slot.shape != "param" or (memory.shape == param.shape and memory.stride() == param.stride())


@dataclass(frozen=True)
class Keeping:
    """How an optimizer keeps memories and writes weights."""

    storage: Storage = "float32"
    rounding: Rounding = "nearest"

    def of(self, chain: Chain, param: Tensor, in_rows: bool) -> tuple[Kept, ...]:
        """How the memories of a parameter are kept."""
        return tuple(Kept(slot) for slot in chain.slots)

    def rounding_of(self, dtype: torch.dtype) -> Rounding:
        """How a weight of this dtype is written; only half precision needs more than rounding to nearest."""
        return self.rounding if dtype.itemsize < 4 else "nearest"

    def complete(self, member: Member) -> None:
        """Make the memories that a member's state lacks, and bring those that do not fit into their form."""
        state, param = member.state, member.param
        for kept in member.kept:
            if any(key not in state for key in kept.keys):
                state.update(kept.new(param))
            elif not kept.fits(state, param):
                for key, like in kept.new(param).items():
                    state[key] = like.copy_(state[key])
        if KAHAN in member.keys and KAHAN not in state:
            state[KAHAN] = torch.zeros_like(param.detach(), requires_grad=False)

    def describe(self, members: list[Member]) -> Iterator[str]:
        """Lines for ``explain()``."""
        yield from ()


def write(p: Tensor, w: Tensor, rounding: Rounding, seed: Tensor | None) -> None:
    """Write a weight."""
    p.copy_(w)


def kahan(p: Tensor, extra: Tensor, w: Tensor) -> None:
    """Write a weight and what its dtype could not hold of it."""
    p.copy_(w)
    extra.copy_(w - w.to(p.dtype).to(w.dtype))
