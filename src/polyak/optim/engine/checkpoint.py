"""Saving and loading optimizer state: compact copies out, checked and cast by slot in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyak.optim.engine.member import STEP, local
from polyak.optim.engine.rule import Chain, Slot

if TYPE_CHECKING:
    from polyak.optim.engine.optimizer import Optimizer

# options of torch.optim groups that say how, not what, is computed
IGNORED = {
    "params",
    "param_names",
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "initial_lr",
    "method",
    "maximize",
}


def _compact(value: Any) -> Any:
    """A tensor that is a piece of a larger storage, copied out; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    here = local(value)
    if here.untyped_storage().nbytes() <= here.numel() * here.itemsize:
        return value
    return value.detach().clone()


def compact_states(states: Any) -> Any:
    """A copy of ``optimizer.state`` (or its packed form) whose tensors own their memory."""
    out: Any = defaultdict(dict) if isinstance(states, defaultdict) else {}
    for key, values in states.items():
        out[key] = {name: _compact(v) for name, v in values.items()} if isinstance(values, dict) else values
    return out


def compact(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state_dict whose tensors own their memory, with options that torch.distributed.checkpoint can gather."""
    groups = [{name: _spelled(value) for name, value in group.items()} for group in state_dict["param_groups"]]
    return {**state_dict, "state": compact_states(state_dict["state"]), "param_groups": groups}


def _spelled(option: Any) -> Any:
    """An option as a state_dict holds it: a dtype by its name."""
    return str(option) if isinstance(option, torch.dtype) else option


def _read(option: Any) -> Any:
    """The inverse of :func:`_spelled`."""
    named = getattr(torch, option.removeprefix("torch."), None) if isinstance(option, str) else None
    return named if isinstance(named, torch.dtype) else option


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of all state tensors on this rank."""
    tensors = (v for values in optimizer.state.values() for v in values.values() if isinstance(v, Tensor))
    return sum(local(t).numel() * t.itemsize for t in tensors)


def load(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """See :meth:`Optimizer.load_state_dict`. All checks come before the first change."""
    state_dict = state_dict.copy()
    for pre_hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        changed = pre_hook(optimizer, state_dict)
        state_dict = state_dict if changed is None else changed
    saved_groups = deepcopy(state_dict["param_groups"])
    _check_sizes(optimizer, saved_groups)
    groups, states = [], {}
    for index, (group, saved) in enumerate(zip(optimizer.param_groups, saved_groups, strict=True)):
        merged = _merge_group(optimizer, group, saved, index)
        groups.append(merged)
        chain = optimizer.chain_of(merged)
        for saved_id, p in zip(saved["params"], group["params"], strict=True):
            values = state_dict["state"].get(saved_id)
            if values:
                where = f"parameter {saved_id} (group {index})"
                states[p] = dict(_memories(optimizer, chain.for_shape(p.shape), p, values, where))
    optimizer.param_groups[:] = groups
    optimizer.state = defaultdict(dict, states)
    optimizer._plans = None
    optimizer._planned()
    for post_hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        post_hook(optimizer)


def _check_sizes(optimizer: Optimizer, saved: list[dict[str, Any]]) -> None:
    own = optimizer.param_groups
    if len(own) != len(saved):
        raise ValueError(f"the state_dict has {len(saved)} parameter groups, this optimizer has {len(own)}")
    for i, (a, b) in enumerate(zip(own, saved, strict=True)):
        if len(a["params"]) != len(b["params"]):
            raise ValueError(f"group {i} of the state_dict has {len(b['params'])} parameters, here {len(a['params'])}")


def _merge_group(optimizer: Optimizer, group: dict[str, Any], saved: dict[str, Any], index: int) -> dict[str, Any]:
    """The group with the saved options; refuses options that this method does not have."""
    method = saved.get("method")
    if method is not None and method != group["method"]:
        raise ValueError(
            f"the state_dict is of method {method!r}, this optimizer is {group['method']!r}; "
            "polyak.optim.switch() continues a run under another method"
        )
    if method is None:
        _check_foreign(optimizer, group, saved, index)
    merged = {**group, **{k: _read(v) for k, v in saved.items() if k not in ("params", "method")}}
    if "param_names" in group:
        merged["param_names"] = group["param_names"]
    optimizer._check_group(merged)
    return merged


def _check_foreign(optimizer: Optimizer, group: dict[str, Any], saved: dict[str, Any], index: int) -> None:
    known = {h.name for h in optimizer.declared()}
    for name, value in saved.items():
        if name in known or name in IGNORED or name in group:
            continue
        if name == "decoupled_weight_decay":
            if bool(value) != (group["method"] != "adam") and saved.get("weight_decay", 0) != 0:
                raise ValueError(f"group {index}: {name}={value} does not fit method {group['method']!r}")
            saved_free = True
        else:
            saved_free = not value
        if not saved_free:
            raise ValueError(
                f"group {index}: the state_dict has {name}={value!r}, which {group['method']!r} does not know"
            )


def _memories(
    optimizer: Optimizer, chain: Chain, p: Tensor, values: dict[str, Any], where: str
) -> Iterator[tuple[str, Tensor]]:
    slots = {slot.name: slot for slot in chain.slots}
    present = {name: v for name, v in values.items() if v is not None}
    extra = sorted(set(present) - set(slots) - {STEP})
    missing = sorted(set(slots) - set(present)) if set(present) - {STEP} or not slots else []
    if extra or missing:
        owner = type(optimizer).__name__
        raise ValueError(f"{where}: {owner} keeps {sorted(slots)}; the state_dict has extra {extra}, lacks {missing}")
    for name, slot in slots.items():
        if name in present:
            yield name, cast_memory(slot, p, present[name], where)
    if chain.timed:
        # torch's SGD keeps no counter: a momentum buffer tells that a step was made
        yield STEP, torch.tensor(float(present.get(STEP, 1.0 if present else 0.0)))


def cast_memory(slot: Slot, p: Tensor, value: Any, where: str) -> Tensor:
    """A copy in the dtype of its slot, on the parameter's device, a DTensor for a DTensor."""
    shape = p.shape if slot.shape == "param" else torch.Size(())
    value = torch.as_tensor(value)
    fits = value.shape == shape or (slot.shape == "param" and value.shape == local(p).shape)
    if not fits:
        raise ValueError(f"{where}: {slot.name} has shape {tuple(value.shape)}, expected {tuple(shape)}")
    dtype = slot.dtype_for(p.dtype)
    if not hasattr(p, "placements") or hasattr(value, "placements") or slot.shape == "scalar":
        out = (
            torch.empty_like(p, dtype=dtype) if slot.shape == "param" else torch.empty((), dtype=dtype, device=p.device)
        )
        return out.detach().copy_(value)
    from torch.distributed.tensor import DTensor, distribute_tensor

    sharded: Any = p
    value = value.to(device=p.device, dtype=dtype, copy=True)
    if value.shape == p.shape:
        return distribute_tensor(value, sharded.device_mesh, sharded.placements, src_data_rank=None)
    return DTensor.from_local(
        value, sharded.device_mesh, sharded.placements, run_check=False, shape=p.shape, stride=p.stride()
    )
