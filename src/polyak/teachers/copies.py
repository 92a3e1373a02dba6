"""Copies of models: around other tensors, and with a word where a copy would not be one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import FunctionType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from polyak.memory._check import require
from polyak.teachers.matching import address, check_fit, is_dtensor, is_plain, local, unwrap
from polyak.teachers.replica import Replica, bare
from polyak.teachers.treatment import Kind, Places, Treatment

Teacher = nn.Module | Sequence[nn.Module] | Literal["copy"] | None
Module = TypeVar("Module", bound=nn.Module)


def replicate(
    model: nn.Module, places: Places, teacher: Teacher, count: int, several: bool, treatment: Treatment
) -> list[Replica]:
    """``count`` copies of a model's tensors, with modules around them as ``teacher`` says."""
    kinds = treatment.kinds(places)
    # what is made in inference mode could not be moved outside of it
    with torch.inference_mode(False), torch.no_grad():
        if teacher is None:
            held = {name: where for name, where in places.items() if kinds[name] != "share"}
            return [bare(_copied(held, treatment), held) for _ in range(count)]
        if isinstance(teacher, str):
            require(teacher == "copy", "teacher", teacher, "'copy', a module, or None")
            return [_around(model, places, kinds, treatment) for _ in range(count)]
        return _filled(teacher, places, count, several, treatment)


def _filled(teacher: Any, places: Places, count: int, several: bool, treatment: Treatment) -> list[Replica]:
    """The modules that were given, with the online model's values."""
    modules = list(teacher) if isinstance(teacher, Sequence) and several else [teacher]
    if not all(isinstance(m, nn.Module) for m in modules):
        raise TypeError(f"teacher must be 'copy', None or a module (several in a sequence), got {teacher!r}")
    require(len(modules) == count, "teacher", f"{len(modules)} modules", f"one for each of {count} schedules")
    fixed = treatment.dtype, treatment.device
    require(fixed == (None, None), "dtype and device", fixed, "None where teacher is a module")
    require(treatment.frozen == "copy", "frozen", treatment.frozen, "'copy' where teacher is a module")
    online = {name: where[0].read() for name, where in places.items()}
    replicas = [Replica(m) for m in modules]
    for replica in replicas:
        check_fit(replica.read(), online, "teacher", "the online model")
        odd = [name for name, tensor in replica.read().items() if tensor.is_inference()]
        require(not odd, "teacher", f"one with {odd} made in inference mode", "made outside of it")
    _refuse_shared(online, replicas)
    for replica in replicas:
        for name, tensor in replica.read().items():
            local(tensor).copy_(local(online[name]))
            if replica.places[name][0].is_parameter:
                tensor.requires_grad_(False)
    return replicas


def _refuse_shared(online: dict[str, Tensor], replicas: list[Replica]) -> None:
    taken = {pointer for t in online.values() if (pointer := address(t))}
    for replica in replicas:
        own = {name: pointer for name, t in replica.read().items() if (pointer := address(t))}
        shared = [name for name, pointer in own.items() if pointer in taken]
        require(not shared, "teacher", f"one that shares {shared}", "of tensors of its own")
        taken |= set(own.values())


def _copied(places: Places, treatment: Treatment) -> dict[str, Tensor]:
    return {name: copied(where[0].read(), where[0].is_parameter, treatment) for name, where in places.items()}


def copied(tensor: Tensor, is_parameter: bool, treatment: Treatment) -> Tensor:
    """A copy of a tensor without gradients, floating ones in the average's dtype; of a parameter, a parameter.

    A class of its own, with what hangs on it, stays: a quantized weight without its scales is none.
    """
    wanted = treatment.dtype_for(tensor)
    if is_plain(tensor):
        value = tensor.detach().to(device=treatment.device, dtype=wanted, copy=True)
        return nn.Parameter(value, requires_grad=False) if is_parameter else value
    value = copy.deepcopy(tensor if tensor.is_leaf else tensor.detach()).requires_grad_(False)
    if is_parameter and tensor.requires_grad and value.dtype != wanted:
        value.data = value.data.to(wanted)
    if treatment.device is not None and value.device != torch.device(treatment.device):
        value = value.to(treatment.device)
        value = value if isinstance(value, nn.Parameter) or not is_parameter else nn.Parameter(value, False)
    return value


def _around(model: nn.Module, places: Places, kinds: dict[str, Kind], treatment: Treatment) -> Replica:
    """A deep copy of the model that has copies of its tensors, or shares them."""
    if any(is_dtensor(where[0].read()) for where in places.values()):
        raise ValueError(
            "teacher must be a module sharded as the model is, or None to keep tensors only, where the model is "
            "sharded with FSDP2, got 'copy'"
        )
    shared = frozenset(name for name, kind in kinds.items() if kind == "share")
    own = _copied({name: where for name, where in places.items() if name not in shared}, treatment)
    memo: dict[int, object] = {}
    for name, where in places.items():
        for place in where:
            memo[id(place.read())] = place.read() if name in shared else own[name]
    return Replica(deep_copy(unwrap(model), memo).eval(), without=shared)


def deep_copy(module: Module, memo: dict[int, object] | None = None) -> Module:
    """A deep copy of a module, also of one whose attributes were computed from parameters, as by ``weight_norm``.

    Args:
        module: the module.
        memo: what stands for which objects, by ``id``, in the copy.

    Raises:
        ValueError: if something in it cannot be copied, or if a function was put over a ``forward``, which the copy
            would share, so that it ran on the weights of the original; says what to do.
    """
    memo = {} if memo is None else memo
    for inner in module.modules():
        for value in vars(inner).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
    try:
        made = copy.deepcopy(module, memo)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{_not_copied(module, str(error).splitlines()[0])}") from error
    for (name, inner), twin in zip(module.named_modules(), made.modules(), strict=True):
        _own_forward(module, name, inner, twin)
    return made


def _own_forward(module: nn.Module, name: str, inner: nn.Module, twin: nn.Module) -> None:
    """See to it that what a copy runs in place of its class's ``forward`` is not bound to the original."""
    forward = vars(inner).get("forward")
    if forward is None or vars(twin).get("forward") is not forward:
        return  # a method, which has been bound to the copy
    compiled = _compiled(forward)
    if compiled != type(inner).forward.__get__(inner):
        where = f"the forward of {name!r}" if name else "its forward"
        raise ValueError(_not_copied(module, f"{where} is a function, which a copy would share with the original"))
    del twin.forward  # compiled: the copy runs what was compiled


def _compiled(forward: Any) -> Any:
    """The function that ``torch.compile`` made another of, if it did."""
    inner = getattr(forward, "_torchdynamo_orig_callable", None)
    if isinstance(inner, FunctionType) and str(inner.__globals__["__name__"]).startswith("torch."):
        inner = getattr(inner, "__wrapped__", None)  # torch's own wrapper of a method
    return inner


def _not_copied(module: nn.Module, why: str) -> str:
    return (
        f"a {type(module).__name__} cannot be copied ({why}): give teacher=None and evaluate in swapped(), or "
        "teacher=<a module of the same make>, where there is such an argument"
    )
