"""Memories: where they lie, and the units that they make their parameters into.

``optimizer.state[p]`` is the truth. A parameter that is worked on in place has memories laid out like it; the
memories of gathered parameters are views into one buffer a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from polyak.optim.engine.layout import CHUNK, Unit
from polyak.optim.engine.member import Member, local
from polyak.optim.engine.rule import Slot


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
    gathered = [_stack(run) for stack in stacks.values() for run in _cut(stack)]
    _share_scratch(gathered)
    return units + gathered


def _share_scratch(units: list[Unit]) -> None:
    """One buffer a dtype and device for gathered weights. A tensor larger than a run is gathered anew each time."""
    kinds: dict[Any, list[Unit]] = {}
    for unit in units:
        if unit.numel <= CHUNK and unit.flats is not None:
            kinds.setdefault((unit.values[0].dtype, unit.device), []).append(unit)
    for (dtype, device), group in kinds.items():
        scratch = torch.empty(max(unit.numel for unit in group), dtype=dtype, device=device)
        for unit in group:
            unit.use_scratch(scratch)


def _cut(members: list[Member]) -> Iterator[list[Member]]:
    run: list[Member] = []
    size = 0
    # a matrix function needs several arrays of the size of its run
    limit = CHUNK // 2 if any(q.kind == "matrix" for q in members[0].questions) else CHUNK
    for member in members:
        if run and size + member.numel > limit:
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
