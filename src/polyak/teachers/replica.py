"""A model's tensors under their names, copies of a model around other tensors, and exchanging the two."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polyak.memory._check import require
from polyak.teachers.matching import Place, check_fit, is_averageable, is_dtensor, local, places_of, unwrap

Teacher = nn.Module | Sequence[nn.Module] | Literal["copy"] | None
Places = dict[str, list[Place]]


class Replica:
    """Tensors by name: those of a module, or with ``module=None`` just tensors."""

    def __init__(self, module: nn.Module | None, places: Places | None = None) -> None:
        self.module = module
        inside = [] if module is None else list(module.modules())
        self._sharded: list[Any] = [m for m in inside if hasattr(m, "unshard") and hasattr(m, "reshard")]
        self.reshard()
        self.places = places_of(module) if places is None and module is not None else places or {}
        first = [where[0] for where in self.places.values()]
        self._stores = [(p.owner._parameters if p.is_parameter else p.owner._buffers, p.key) for p in first]
        self._tables: list[dict[str, Any]] = [t for m in inside for t in (m._modules, m._parameters, m._buffers)]
        self._entries = [(table, key) for table in self._tables for key in table]
        self._counts, self._values = list(map(len, self._tables)), [table[key] for table, key in self._entries]
        self._tensors = [v for v in self._values if isinstance(v, Tensor) and not is_dtensor(v)]
        self._memory = self._where()

    def _where(self) -> tuple[list[int], list[int]]:
        """Changes when a tensor's ``.data`` is set, as ``module.to`` does: to another dtype, device or shape."""
        return list(map(Tensor.data_ptr, self._tensors)), list(map(Tensor.numel, self._tensors))

    def is_whole(self) -> bool:
        """Whether the module still has the submodules and tensors that it had."""
        self.reshard()
        if self._counts != list(map(len, self._tables)):
            return False
        try:
            return all(map(operator.is_, self._values, [table[key] for table, key in self._entries]))
        except KeyError:
            return False

    def is_unchanged(self) -> bool:
        """Whether it is whole, and all tensors are in the memory in which they were."""
        return self.is_whole() and self._memory == self._where()

    def renewed(self) -> Replica:
        """This one, or where the module has changed, one of what it holds now.

        Raises:
            ValueError: on tensors without storage (meta, lazy) or sparse ones; names them.
        """
        return self if self.is_unchanged() else Replica(self.module)

    def untied(self, aliases: dict[str, str]) -> Replica:
        """One in which each name of ``aliases`` has a tensor of its own, a copy of that it was tied to."""
        places = dict(self.places)
        for alias, first in aliases.items():
            mine = next((p for p in places[first] if p.name == alias), None)
            place = mine or places[first][0]._replace(key=alias, name=alias)
            store: dict[str, Any] = place.owner._parameters if place.is_parameter else place.owner._buffers
            tensor = places[first][0].read()
            copied = tensor.detach().clone()
            store[place.key] = nn.Parameter(copied, requires_grad=False) if place.is_parameter else copied
            places[alias] = [place]
        return Replica(None, places) if self.module is None else Replica(self.module)

    def reshard(self) -> None:
        """Under FSDP2 a forward without a backward leaves whole tensors in place of the shards: put these back."""
        for module in self._sharded:
            module.reshard()

    def tensors(self) -> list[Tensor]:
        """The tensors as they are now, in the order of the names."""
        self.reshard()
        return [store[key] for store, key in self._stores]  # type: ignore[misc]

    def read(self) -> dict[str, Tensor]:
        """The tensors as they are now, by name."""
        return dict(zip(self.places, self.tensors(), strict=True))


def replicate(
    model: nn.Module,
    places: Places,
    teacher: Teacher,
    count: int,
    several: bool,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> list[Replica]:
    """``count`` copies of a model's tensors, with modules around them as ``teacher`` says."""
    online = {name: p[0].read() for name, p in places.items()}
    if teacher is None:
        return [_bare(_copied(online, places, dtype, device), places) for _ in range(count)]
    if isinstance(teacher, str):
        require(teacher == "copy", "teacher", teacher, "'copy', a module, or None")
        if any(is_dtensor(t) for t in online.values()):
            raise ValueError(
                "teacher must be a module sharded as the model is, or None to keep tensors only, where the model is "
                "sharded with FSDP2, got 'copy'"
            )
        return [_around(model, _copied(online, places, dtype, device), places) for _ in range(count)]
    modules = list(teacher) if isinstance(teacher, Sequence) and several else [teacher]
    if not all(isinstance(m, nn.Module) for m in modules):
        raise TypeError(f"teacher must be 'copy', None or a module (several in a sequence), got {teacher!r}")
    require(len(modules) == count, "teacher", f"{len(modules)} modules", f"one for each of {count} schedules")
    require(dtype is None and device is None, "dtype and device", (dtype, device), "None where teacher is a module")
    replicas = [Replica(m) for m in modules if isinstance(m, nn.Module)]
    for replica in replicas:
        check_fit(replica.read(), online, "teacher", "the online model")
    _refuse_shared(online, replicas)
    for replica in replicas:
        _fill(replica, online)
    return replicas


def _refuse_shared(online: dict[str, Tensor], replicas: list[Replica]) -> None:
    taken = {local(t).data_ptr() for t in online.values() if local(t).numel()}
    for replica in replicas:
        own = {name: local(t).data_ptr() for name, t in replica.read().items() if local(t).numel()}
        shared = [name for name, pointer in own.items() if pointer in taken]
        require(not shared, "teacher", f"one that shares {shared}", "of tensors of its own")
        taken |= set(own.values())


@torch.no_grad()
def _fill(replica: Replica, online: dict[str, Tensor]) -> None:
    for name, tensor in replica.read().items():
        local(tensor).copy_(local(online[name]))
        if replica.places[name][0].is_parameter:
            tensor.requires_grad_(False)


def _copied(
    online: dict[str, Tensor], places: Places, dtype: torch.dtype | None, device: torch.device | str | None
) -> dict[str, Tensor]:
    """Copies of tensors, floating ones in ``dtype``; where tensors were parameters, parameters."""
    copies = {}
    for name, tensor in online.items():
        wanted = _dtype_for(tensor, dtype)
        value = tensor.detach().to(device=device, dtype=wanted, copy=True)
        copies[name] = nn.Parameter(value, requires_grad=False) if places[name][0].is_parameter else value
    return copies


def _dtype_for(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    if not is_averageable(tensor):
        return tensor.dtype
    real = tensor.dtype.to_real()
    wanted = dtype or (torch.float32 if real.itemsize < 4 else real)
    if not tensor.is_complex():
        return wanted
    return torch.complex128 if wanted == torch.float64 else torch.complex64


def _bare(tensors: dict[str, Tensor], places: Places) -> Replica:
    """Tensors without a model: a module that keeps them under their whole names."""
    owner = nn.Module()
    for name, tensor in tensors.items():
        (owner._parameters if places[name][0].is_parameter else owner._buffers)[name] = tensor  # type: ignore[assignment]
    return Replica(None, {name: [Place(owner, name, places[name][0].is_parameter, name)] for name in tensors})


def _around(model: nn.Module, tensors: dict[str, Tensor], places: Places) -> Replica:
    """A deep copy of the model that has ``tensors`` in place of its own, which are not copied."""
    memo: dict[int, object] = {id(p.read()): tensors[name] for name, where in places.items() for p in where}
    module: nn.Module = copy.deepcopy(unwrap(model), memo)
    module.eval()
    return Replica(module)


@contextmanager
def swap(replica: Replica, other: Replica) -> Iterator[None]:
    """Exchange the tensors of two replicas, and exchange them back in the end, whatever happens."""
    kept: dict[str, Tensor] = {}
    exchanged: list[str] = []
    try:
        with torch.no_grad():
            for name in replica.places:
                if _exchange(replica.places[name], other.places[name], name, kept):
                    exchanged.append(name)
        torch.clear_autocast_cache()  # it holds casts of weights by identity, which have other values now
        yield
    finally:
        replica.reshard()
        with torch.no_grad():
            for name, before in kept.items():
                local(replica.places[name][0].read()).copy_(before)
            for name in exchanged:
                _exchange(replica.places[name], other.places[name], name, kept)
        torch.clear_autocast_cache()


def _exchange(places: list[Place], others: list[Place], name: str, kept: dict[str, Tensor]) -> bool:
    """Exchange the memory of two tensors; where it cannot be, copy from the other, keep what was there: False."""
    mine, theirs = places[0].read(), others[0].read()
    if is_dtensor(mine) or mine.dtype != theirs.dtype or mine.device != theirs.device:
        kept[name] = local(mine).clone()
        local(mine).copy_(local(theirs))
        return False
    here, there = mine.data, theirs.data
    for place in places:
        place.read().data = there
    for place in others:
        place.read().data = here
    return True
