"""A model's tensors under their names, wherever they stand in it."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, nn

from polyak.teachers.matching import Place, address, is_dtensor, is_plain, owners_of, places_of, without_wrappers
from polyak.teachers.treatment import Places, is_movable


class Replica:
    """Tensors by name: those of a module, or with ``module=None`` just tensors.

    Args:
        module: the module.
        places: where its tensors stand, if that is known.
        without: names of tensors that are not its own, but the online model's.
    """

    def __init__(
        self, module: nn.Module | None, places: Places | None = None, without: frozenset[str] = frozenset()
    ) -> None:
        self.module = module
        inside = [] if module is None else list(module.modules())
        self._sharded: list[Any] = [m for m in inside if hasattr(m, "unshard") and hasattr(m, "reshard")]
        self.reshard()
        found = places_of(module) if places is None and module is not None else places or {}
        self.shared = {name: where for name, where in found.items() if name in without}
        self.places = {name: where for name, where in found.items() if name not in without}
        first = [where[0] for where in self.places.values()]
        self._stores = [(p.store, p.key) for p in first]
        self._tables: list[dict[str, Any]] = [t for m in inside for t in (m._modules, m._parameters, m._buffers)]
        self._counts = list(map(len, self._tables))
        self.watch(set())

    def watch(self, loose: set[str]) -> None:
        """Remember all tensors but those called ``loose``, which others look after, as they are now."""
        passed = {(id(p.store), p.key) for name in loose & self.places.keys() for p in self.places[name]}
        self._entries = [(t, key) for t in self._tables for key in t if (id(t), key) not in passed]
        self._values = [table[key] for table, key in self._entries]
        tensors = [v for v in self._values if isinstance(v, Tensor)]
        self._tensors = [t for t in tensors if is_plain(t) and not is_dtensor(t)]
        self._others = [t for t in tensors if not is_plain(t) or is_dtensor(t)]
        self._memory = self._where()

    def _where(self) -> tuple[list[int], ...]:
        """Changes when a tensor's ``.data`` is set, as ``module.to`` does: to another dtype, device or shape."""
        pointers, sizes = list(map(Tensor.data_ptr, self._tensors)), list(map(Tensor.numel, self._tensors))
        return pointers, sizes, list(map(address, self._others))

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

    def replaced(self) -> set[str]:
        """Names of buffers that are others than they were, and may be so again after the next forward."""
        before = {(id(table), key): value for (table, key), value in zip(self._entries, self._values, strict=True)}
        return {
            name
            for name, where in self.places.items()
            if where[0].key in where[0].store
            and isinstance(where[0].read(), Tensor)
            and is_movable(where)
            and before.get((id(where[0].store), where[0].key), where[0].read()) is not where[0].read()
        }

    def renewed(self) -> Replica:
        """This one, or where the module has changed, one of what it holds now.

        Raises:
            ValueError: on tensors without storage (meta, lazy) or sparse ones; names them.
        """
        there = all(isinstance(store.get(key), Tensor) for store, key in self._stores)
        return self if there and self.is_unchanged() else Replica(self.module, without=frozenset(self.shared))

    def adopting(self, new: dict[str, tuple[list[Place], Tensor]]) -> Replica:
        """One that has, under further names or in place of what they were of, the tensors of ``new``.

        Args:
            new: by name, where the online model has it, and the tensor. What was shared is then its own.
        """
        if self.module is None:
            owner = next((where[0].owner for where in self.places.values()), nn.Module())
            more = {name: [Place(owner, name, where[0].is_parameter, name)] for name, (where, _) in new.items()}
            for name, (_, tensor) in new.items():
                more[name][0].store[name] = tensor
            return Replica(None, {**self.places, **more})
        owners = owners_of(self.module)
        for where, tensor in new.values():
            for place in where:
                owner = owners.get(without_wrappers(place.path)) or owners[place.name.removesuffix(place.key)]
                place._replace(owner=owner).write(tensor)
        return Replica(self.module, without=frozenset(self.shared.keys() - new.keys()))

    def dropping(self, names: set[str]) -> Replica:
        """One without some names; of a module, which makes and keeps its own buffers, this one."""
        if self.module is not None or not names:
            return self
        return Replica(None, {name: where for name, where in self.places.items() if name not in names})

    def reshard(self) -> None:
        """Under FSDP2 a forward without a backward leaves whole tensors in place of the shards: put these back."""
        for module in self._sharded:
            module.reshard()

    def tensors(self) -> list[Tensor]:
        """The tensors as they are now, in the order of the names."""
        self.reshard()
        return [store[key] for store, key in self._stores]

    def read(self) -> dict[str, Tensor]:
        """The tensors as they are now, by name."""
        return dict(zip(self.places, self.tensors(), strict=True))


def bare(tensors: dict[str, Tensor], places: Places) -> Replica:
    """Tensors without a model: a module that keeps them under their whole names."""
    owner = nn.Module()
    found = {name: [Place(owner, name, places[name][0].is_parameter, name)] for name in tensors}
    for name, tensor in tensors.items():
        found[name][0].store[name] = tensor
    return Replica(None, found)
