"""Go on under another method, keeping the memories that both share."""

from __future__ import annotations

from typing import Any

import torch

from polyak.optim.create import LAYERED, get
from polyak.optim.engine.chain import Chain
from polyak.optim.engine.checkpoint import cast_memory
from polyak.optim.engine.keeping import forms_of, held_as
from polyak.optim.engine.member import STEP
from polyak.optim.engine.optimizer import Optimizer
from polyak.optim.engine.views import is_predicted
from polyak.optim.method import Method

_ENGINE = ("execution", "check_finite")
_GROUP = ("maximize", "state_storage", "rounding")
"""Options that every group of every method has."""


def switch(optimizer: Optimizer, name: str, **hyperparameters: Any) -> Optimizer:
    """Continue a run under another method.

    The groups, their ``lr`` and every option that both methods know by name, kind and range are kept; memories of the
    same name and shape, the step counters, and what others put into the state, are kept; other memories start fresh. A
    learning-rate scheduler made for the old optimizer goes on driving the new one, because the group dictionaries are
    the same objects; the old optimizer must not be used any more.

    Args:
        optimizer: a polyak optimizer.
        name: the method to go on with.
        **hyperparameters: values for options of the new method, ``state_storage`` and ``rounding`` among them; they win
            over kept ones.

    Returns:
        The new optimizer.

    Raises:
        ValueError: an unknown method or a value out of range; the old optimizer is then unchanged.
        RuntimeError: the weights are predicted ones; nothing has changed.
    """
    if is_predicted(optimizer):
        raise RuntimeError("the weights are predicted ones; restore() them before a switch")
    method = get(name)
    if name in LAYERED:
        raise ValueError(f"{name} reads what flows through layers, so it needs the model: build it with that")
    groups = []
    for group in optimizer.param_groups:
        names = _portable(method, optimizer, group)
        kept = {"params": group["params"], **{k: v for k, v in group.items() if k in names}}
        groups.append(kept | _given(method, group, hyperparameters))
    engine = {key: getattr(optimizer, key) for key in _ENGINE} | {"maximize": optimizer.defaults["maximize"]}
    new = method(groups, **{**engine, **hyperparameters})
    with torch.inference_mode(False), torch.no_grad():
        _carry_memories(optimizer, new)
    for old_group, new_group in zip(optimizer.param_groups, new.param_groups, strict=True):
        values = dict(new_group)
        old_group.clear()
        old_group.update(values)
    new.param_groups = optimizer.param_groups
    # the same registries, so that what listens to the steps (an average of the weights) goes on, and can still let go
    new._optimizer_step_pre_hooks = optimizer._optimizer_step_pre_hooks
    new._optimizer_step_post_hooks = optimizer._optimizer_step_post_hooks
    new.complete_state()  # so that a checkpoint taken before the next step is whole
    new.forget_plans(bool(new.state))
    return new


def _given(method: type[Method], group: dict[str, Any], hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """The new values that concern a group: of an auxiliary group those of the arguments that fill its options."""
    filled = {h.name: h.fills for h in method.arguments if h.fills}
    if filled and group.get("role", method.roles[0]) not in method.roles:
        return {filled.get(k, k): v for k, v in hyperparameters.items() if k in filled or k in _GROUP}
    known = {h.name for h in method.hypers}.union(_GROUP)
    return {k: v for k, v in hyperparameters.items() if k in known}


def _portable(method: type[Method], optimizer: Optimizer, group: dict[str, Any]) -> set[str]:
    """Options of a group that mean the same in the other method, and what schedulers and the user put there."""
    shared = {memory.name for memory in optimizer.chain_of(group).shared}
    names = set(group) - {h.name for h in optimizer.declared()} - {"params", "method"} - shared
    for hyper in method.hypers:
        if hyper.name not in group:
            continue
        try:
            hyper.check(group[hyper.name], method.__name__)
        except (TypeError, ValueError):
            continue
        names.add(hyper.name)
    return names


def _carry_memories(old: Optimizer, new: Optimizer) -> None:
    """Copies of what both keep, in the slots' own form, and what is no memory of the old method as it is."""
    for before_group, group in zip(old.param_groups, new.param_groups, strict=True):
        for memory in new.chain_of(group).shared:
            if memory.name in {kept.name for kept in old.chain_of(before_group).shared}:
                group[memory.name].copy_(before_group[memory.name])
        for p in group["params"]:
            before = old.state.get(p, {})
            chain, before_chain = new.chain_of(group).for_shape(p.shape), old.chain_of(before_group).for_shape(p.shape)
            carried = {k: v for k, v in before.items() if k not in _names(chain, p) | _names(before_chain, p)}
            known = {slot.name: slot for slot in before_chain.slots}
            for slot in chain.slots:
                held = held_as(known[slot.name], before, p) if slot.name in known else None
                if held is not None and held.slot.shape == slot.shape:
                    carried[slot.name] = cast_memory(slot, p, held.read(before, p), slot.name).clone()
            if STEP in before and chain.timed:
                carried[STEP] = before[STEP].clone()
            if carried:
                new.state[p] = carried
    new.state.update({key: value for key, value in old.state.items() if not isinstance(key, torch.Tensor)})


def _names(chain: Chain, p: torch.Tensor) -> set[str]:
    """Keys of all that a chain may keep of a parameter, in whatever form."""
    return {key for slot in chain.slots for form in forms_of(slot, p) for key in form.keys} | {STEP}
