"""Memories that rules share among all tensors of an optimizer: 0-d float64 tensors in the groups that run the rules.

A group carries them as it carries its options, so that whatever saves, copies or loads groups does so with them. The
first group's count; a step writes all in place, at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from polyak.optim.engine.chain import Chain
from polyak.optim.engine.member import holds_nothing
from polyak.optim.engine.rule import Options, Shared


class Shares(Protocol):
    """What is asked of an optimizer."""

    param_groups: list[dict[str, Any]]

    def chain_of(self, group: Options) -> Chain:
        """The chain that a group runs."""


class Runs(Protocol):
    """What is asked of the plan of a group."""

    chain: Chain
    group: dict[str, Any]


def check(optimizer: Shares, group: dict[str, Any]) -> None:
    """Refuse a group that has something else than a number under the name of a shared memory."""
    for memory in optimizer.chain_of(group).shared:
        if memory.name in group:
            checked(memory, group)


def complete(optimizer: Shares, group: dict[str, Any]) -> None:
    """Give a group the shared memories of its chain that it lacks: the present values, or where none are new ones."""
    for memory in optimizer.chain_of(group).shared:
        if memory.name not in group:
            others = (other[memory.name] for other in optimizer.param_groups if memory.name in other)
            group[memory.name] = _new(next(others, memory.initial), _device(group))
        else:
            group[memory.name] = checked(memory, group)


def present(optimizer: Shares, plans: Iterable[Runs]) -> dict[str, Tensor]:
    """The values at the start of a step, where the weights are."""
    found: dict[str, Tensor] = {}
    for plan in plans:
        if plan.chain.shared:
            complete(optimizer, plan.group)
        for memory in plan.chain.shared:
            found.setdefault(memory.name, plan.group[memory.name])
    return found


def write(plans: Iterable[Runs], new: Mapping[str, Tensor]) -> None:
    """Write new values to all groups that keep them."""
    for plan in plans if new else ():
        for memory in plan.chain.shared:
            if memory.name in new and not holds_nothing(new[memory.name]):
                plan.group[memory.name].copy_(new[memory.name])


def loaded(chain: Chain, group: dict[str, Any], saved: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The shared memories that a saved group brings, for one of ours.

    Raises:
        ValueError: if the group is of this method and lacks one, or one is no number.
    """
    found: dict[str, Tensor] = {}
    for memory in chain.shared:
        if memory.name in saved:
            found[memory.name] = checked(memory, {**group, memory.name: saved[memory.name]})
        elif saved.get("method") is None:
            found[memory.name] = _new(memory.initial, _device(group))
        else:
            raise ValueError(f"{where}: the state_dict lacks {memory.name!r}")
    return found


def reset(optimizer: Shares) -> None:
    """Begin anew."""
    for group in optimizer.param_groups:
        for memory in optimizer.chain_of(group).shared:
            group[memory.name].fill_(memory.initial)


def checked(memory: Shared, group: Options) -> Tensor:
    """The value that a group has, as a 0-d float64 tensor where its weights are; the same tensor if it is that."""
    given, device = group[memory.name], _device(group)
    if isinstance(given, Tensor) and given.dtype is torch.float64 and given.shape == () and given.device == device:
        return given
    if not isinstance(given, (Tensor, float, int)) or torch.as_tensor(given).numel() != 1:
        raise ValueError(f"{memory.name} of a group must be one number, got {given!r}")
    return _new(given, device)


def _device(group: Options) -> torch.device:
    """Where the weights are, and until they are somewhere the CPU."""
    params: Sequence[Any] = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    device = params[0].device if params else torch.device("cpu")
    return torch.device("cpu") if device.type == "meta" else device


def _new(value: float | Tensor, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        given = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")
        return given.detach().to(device, torch.float64, copy=True).reshape(())
