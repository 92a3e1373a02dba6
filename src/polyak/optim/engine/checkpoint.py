"""Saving and loading optimizer state: checked and cast by slot; all checks come before the first change."""

from __future__ import annotations

import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor

from polyak.declare import Hyper
from polyak.optim.engine import shared
from polyak.optim.engine.chain import Chain
from polyak.optim.engine.keeping import KAHAN, Keeping, Kept
from polyak.optim.engine.member import STEP, STEPS, local
from polyak.optim.engine.rule import Options, Slot
from polyak.optim.engine.views import PREDICTED

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
    "state_storage",
    "rounding",
}
OWN = ("params", "method", "state_storage", "rounding")
"""Options of a group that a checkpoint does not change."""


class Checkpointed(Protocol):
    """What saving and loading need of an optimizer."""

    param_groups: list[dict[str, Any]]
    state: Any
    _optimizer_load_state_dict_pre_hooks: OrderedDict[int, Any]
    _optimizer_load_state_dict_post_hooks: OrderedDict[int, Any]

    def chain_of(self, group: Options) -> Chain:
        """The chain that a group runs."""

    def declared(self) -> tuple[Hyper, ...]:
        """The hyperparameters."""

    def check_together(self, groups: Sequence[Options]) -> None:
        """Refuse groups that do not go together."""

    def check_group(self, group: dict[str, Any]) -> None:
        """Refuse a group with options out of range."""

    def forget_plans(self, stepped: bool) -> None:
        """The state is another one."""


def save(optimizer: Checkpointed, whole: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What torch's ``state_dict`` gives, without states of parameters that no group lists, options spelled out."""
    kept = optimizer.state
    listed = {id(p) for group in optimizer.param_groups for p in group["params"]}
    here = {k: v for k, v in kept.items() if id(k) in listed or not isinstance(k, Tensor)}
    optimizer.state = here
    try:
        state_dict = whole()
    finally:
        optimizer.state = kept
    groups = [{name: _spelled(value) for name, value in group.items()} for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


def _spelled(option: Any) -> Any:
    """An option as a state_dict holds it: a dtype by its name."""
    return str(option) if isinstance(option, torch.dtype) else option


def _read(option: Any) -> Any:
    """The inverse of :func:`_spelled`."""
    if not isinstance(option, str) or not option.startswith("torch."):
        return option  # "double" may be a word of the user's
    named = getattr(torch, option.removeprefix("torch."), None)
    return named if isinstance(named, torch.dtype) else option


def state_bytes(optimizer: Checkpointed) -> int:
    """Bytes of all state tensors on this rank."""
    return sum(local(t).numel() * t.itemsize for t in state_tensors(optimizer))


def state_tensors(optimizer: Checkpointed) -> Iterator[Tensor]:
    """All tensors in the states of parameters; others may have put other things there."""
    states = (values for values in optimizer.state.values() if isinstance(values, dict))
    return (v for values in states for v in values.values() if isinstance(v, Tensor))


def load(optimizer: Checkpointed, state_dict: dict[str, Any]) -> None:
    """See :meth:`Optimizer.load_state_dict`. All checks come before the first change."""
    state_dict = state_dict.copy()
    for pre_hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        changed = pre_hook(optimizer, state_dict)
        state_dict = state_dict if changed is None else changed
    saved_groups = [{k: _copy_of(v) for k, v in group.items()} for group in state_dict["param_groups"]]
    _check_sizes(optimizer, saved_groups)
    groups: list[dict[str, Any]] = []
    states: dict[Any, Any] = {k: v for k, v in state_dict["state"].items() if not isinstance(k, int)}
    with torch.inference_mode(False):
        for index, (group, saved) in enumerate(zip(optimizer.param_groups, saved_groups, strict=True)):
            merged = _merge_group(optimizer, group, saved, index)
            groups.append(merged)
            chain, own = optimizer.chain_of(merged), saved.get("method") is not None
            keeping = Keeping(saved.get("state_storage", "float32"), saved.get("rounding", "nearest"))
            _say_other_storage(group, saved)
            for saved_id, p in zip(saved["params"], group["params"], strict=True):
                values = state_dict["state"].get(saved_id)
                if values:
                    where = f"parameter {saved_id} (group {index})"
                    states[p] = dict(_memories(optimizer, keeping, chain.for_shape(p.shape), p, values, where, own))
    optimizer.check_together(groups)
    optimizer.param_groups[:] = groups
    optimizer.state = defaultdict(dict, states)
    optimizer.forget_plans(bool(states))
    for post_hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        post_hook(optimizer)


def _copy_of(option: Any) -> Any:
    return option.detach().clone() if isinstance(option, Tensor) else deepcopy(option)


def _say_other_storage(group: dict[str, Any], saved: dict[str, Any]) -> None:
    before, now = saved.get("state_storage", "float32"), group.get("state_storage", "float32")
    if before != now:
        warnings.warn(
            f"the state_dict keeps memories as {before}, this optimizer as {now}; they are converted",
            UserWarning,
            stacklevel=4,
        )


def _check_sizes(optimizer: Checkpointed, saved: list[dict[str, Any]]) -> None:
    own = optimizer.param_groups
    if len(own) != len(saved):
        raise ValueError(f"the state_dict has {len(saved)} parameter groups, this optimizer has {len(own)}")
    for i, (a, b) in enumerate(zip(own, saved, strict=True)):
        if len(a["params"]) != len(b["params"]):
            raise ValueError(f"group {i} of the state_dict has {len(b['params'])} parameters, here {len(a['params'])}")


def _merge_group(optimizer: Checkpointed, group: dict[str, Any], saved: dict[str, Any], index: int) -> dict[str, Any]:
    """The group with the saved options; refuses options that this method does not have."""
    method = saved.get("method")
    if method is not None and method != group["method"]:
        raise ValueError(
            f"the state_dict is of method {method!r}, this optimizer is {group['method']!r}; "
            "polyak.optim.switch() continues a run under another method"
        )
    if method is None:
        _check_foreign(optimizer, group, saved, index)
    merged = {**group, **{k: _read(v) for k, v in saved.items() if k not in OWN}}
    if PREDICTED not in saved:
        merged.pop(PREDICTED, None)  # and with it the originals: what comes are the weights of a step
    if STEPS not in saved:
        merged.pop(STEPS, None)  # saved before the first step
    if "param_names" in group:
        merged["param_names"] = group["param_names"]
    optimizer.check_group(merged)
    return merged | shared.loaded(optimizer.chain_of(merged), group, saved, f"group {index}")


def _check_foreign(optimizer: Checkpointed, group: dict[str, Any], saved: dict[str, Any], index: int) -> None:
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
    optimizer: Checkpointed, keeping: Keeping, chain: Chain, p: Tensor, values: dict[str, Any], where: str, own: bool
) -> Iterator[tuple[str, Any]]:
    """A parameter's state, each memory in the form in which it was saved; the next step brings it into its own."""
    kept = keeping.of(chain, p)
    expected = {key for one in kept for key in one.keys}
    present = {name: v for name, v in values.items() if v is not None}
    extra = {name: v for name, v in present.items() if name not in expected and name != STEP}
    fresh = own and not expected & set(present)  # only what others put there
    missing = sorted(expected - set(present)) if set(present) - {STEP} and not fresh else []
    if missing or (extra and not own):
        owner = type(optimizer).__name__
        raise ValueError(
            f"{where}: {owner} keeps {sorted(expected)}; the state_dict has extra {sorted(extra)}, lacks {missing}"
        )
    for one in kept:
        for key in one.keys:
            if key not in present:
                continue
            if one.form is None:
                yield key, cast_memory(one.slot, p, present[key], where)
            else:
                yield key, _checked_part(one, key, p, present[key], where)
    if chain.timed or STEP in present:
        # torch's SGD keeps no counter: a momentum buffer tells that a step was made
        steps = present.get(STEP, 1.0 if present else 0.0)
        yield STEP, torch.as_tensor(steps, dtype=torch.float32, device="cpu").detach().clone().reshape(())
    for name, value in extra.items():  # what others put there: a wrapper's slow weights
        if name == KAHAN:
            yield name, _like_weight(p, value, p.dtype, f"{where}: {KAHAN}")
        else:
            yield name, value.to(p.device) if isinstance(value, Tensor) and value.ndim else value


def _checked_part(kept: Kept, key: str, p: Tensor, value: Any, where: str) -> Tensor:
    """One tensor of a memory that is kept in a form of its own; of other numbers nothing could be read."""
    suffix = key.removeprefix(kept.slot.name)
    shape, dtype = kept.form.parts(p.numel())[suffix] if kept.form is not None else ((), p.dtype)
    value = torch.as_tensor(value)
    if value.dtype != dtype:
        raise ValueError(f"{where}: {key} has dtype {value.dtype}, expected {dtype}")
    if not suffix:
        return _like_weight(p, value, dtype, f"{where}: {key}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{where}: {key} has shape {tuple(value.shape)}, expected {shape}")
    held: Tensor = value.detach().to(p.device)
    return held


def cast_memory(slot: Slot, p: Tensor, value: Any, where: str) -> Tensor:
    """In the dtype of its slot, on the parameter's device, a DTensor for a DTensor; as it is where that fits."""
    dtype, name = slot.dtype_for(p.dtype), f"{where}: {slot.name}"
    if slot.shape == "param":
        return _like_weight(p, value, dtype, name)
    shape, value = slot.shape_for(p.shape), torch.as_tensor(value)
    if value.shape != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(shape)}")
    held: Tensor = value.detach().to(device=p.device, dtype=dtype)
    return held


def _like_weight(p: Tensor, value: Any, dtype: torch.dtype, name: str) -> Tensor:
    """A tensor of a number for each of the weight's, distributed like it; it may come whole or as this rank's part."""
    value = torch.as_tensor(value)
    if value.shape not in (p.shape, local(p).shape):
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(p.shape)}")
    held: Tensor = value.detach().to(device=p.device, dtype=dtype)
    if not hasattr(p, "placements") or hasattr(held, "placements"):
        return held
    from torch.distributed.tensor import DTensor, distribute_tensor

    sharded: Any = p
    if held.shape == p.shape:
        return distribute_tensor(held, sharded.device_mesh, sharded.placements, src_data_rank=None)
    return DTensor.from_local(
        held, sharded.device_mesh, sharded.placements, run_check=False, shape=p.shape, stride=p.stride()
    )
