"""States that come into an optimizer without a chain: whether one is its own, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Wanted = Callable[[dict[str, Any], Tensor], Mapping[str, tuple[int, ...]]]
"""``(saved group, parameter) -> the shapes of the parameter's memories by name``."""


OF_SCHEDULERS = {"param_names", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}
"""What schedulers, and names of parameters, put into a group: a state saved without them is the same optimizer's."""


def refuse_foreign(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any], wanted: Wanted) -> None:
    """Raise ``ValueError`` naming the first thing in a state that is not this optimizer's.

    Args:
        optimizer: what the state is to be loaded into.
        state_dict: as :meth:`state_dict` gives it; a group may have more options, such as those of schedulers.
        wanted: the memories of a parameter; called once the groups fit.
    """
    owner = type(optimizer).__name__
    if missing := {"state", "param_groups"} - set(state_dict):
        raise ValueError(f"{owner}: a state_dict has 'state' and 'param_groups', this one lacks {sorted(missing)}")
    groups, own = state_dict["param_groups"], optimizer.param_groups
    if len(groups) != len(own):
        raise ValueError(f"{owner}: the state_dict has {len(groups)} groups, this optimizer has {len(own)}")
    for i, (group, saved) in enumerate(zip(own, groups, strict=True)):
        if lacking := set(group) - set(saved) - OF_SCHEDULERS:
            raise ValueError(f"{owner}: group {i} of the state_dict lacks {sorted(lacking)}; it is another optimizer's")
        if len(saved["params"]) != len(group["params"]):
            given, here = len(saved["params"]), len(group["params"])
            raise ValueError(f"{owner}: group {i} of the state_dict has {given} parameters, here it has {here}")
    for group, saved in zip(own, groups, strict=True):
        for key, p in zip(saved["params"], group["params"], strict=True):
            _refuse_memories(owner, key, state_dict["state"].get(key, {}), wanted(saved, p))


def _refuse_memories(owner: str, key: Any, found: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> None:
    if set(found) != set(wanted):
        raise ValueError(
            f"{owner}: parameter {key} must have {sorted(wanted)} in the state_dict, it has {sorted(found)}"
        )
    for name, shape in wanted.items():
        if tuple(getattr(found[name], "shape", ())) != shape:
            got = tuple(getattr(found[name], "shape", ()))
            raise ValueError(f"{owner}: {name} of parameter {key} has shape {got} in the state_dict, expected {shape}")
