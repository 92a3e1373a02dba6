"""What one update does to which tensors, worked out once and kept while the tensors stay the same."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from polyak.teachers.follow import Sources
from polyak.teachers.matching import is_averageable, is_dtensor, local
from polyak.teachers.noise import Noise
from polyak.teachers.passes import Pass, all_finite
from polyak.teachers.replica import Replica
from polyak.teachers.treatment import Treatment, is_movable


class Plan:
    """The tensors to average and to copy, of sources (the online model first) and averages.

    Args:
        sources: the online model, then the anchors, each with its share; of fitting tensors, see ``follow``.
        replicas: the averages.
        treatment: what becomes of which tensor.
        moving: averaged buffers that a forward replaces. They are looked up at each update, as all are that are
            copied, so that no new plan has to be made for them.
        compiled: whether large tensors go through a compiled kernel.
        noise: for bfloat16 averages.
    """

    def __init__(
        self,
        sources: Sources,
        replicas: list[Replica],
        treatment: Treatment,
        moving: set[str],
        compiled: bool,
        noise: Noise,
    ) -> None:
        self._models = [source for source, _ in sources]
        self._pulling = [(source, share) for source, share in sources if share > 0.0]
        self._replicas, self._compiled, self._noise = replicas, compiled, noise
        online = sources[0][0]
        treatment.remember(online.places)
        kinds = treatment.kinds(online.places)
        self._names = [name for name, kind in kinds.items() if kind == "average"]
        loose = _movable([*self._models, *replicas], {n for n, k in kinds.items() if k != "average"} | moving)
        for model in (*self._models, *replicas):
            model.watch(loose)
        tensors = [tensor for model in (*self._models, *replicas) for tensor in model.tensors()]
        self._mesh: Any = next((t.device_mesh for t in tensors if is_dtensor(t)), None)  # type: ignore[attr-defined]
        self._has_views = self._mesh is not None or any(t.is_complex() for t in tensors)
        frozen = [where[0].read() for name, where in online.places.items() if kinds[name] in ("copy", "share")]
        self._frozen = [t for t in frozen if isinstance(t, torch.nn.Parameter) and is_averageable(t)]
        self._pass = self._made([name for name in self._names if name not in loose])
        pulled = [source for source, _ in self._pulling]
        self._moving = Lookup([name for name in self._names if name in loose], [*pulled, *replicas])
        self._moved = self._made(self._moving.names)
        self._treatment, peculiar = treatment, treatment.peculiar(online.places)
        copied = [name for name, kind in kinds.items() if kind == "copy" and name not in peculiar]
        self._copied = Lookup(copied, [online, *replicas])
        self._peculiar = {name: online.places[name] for name in peculiar}

    def _made(self, names: list[str]) -> Pass:
        averages = [[local(replica.places[n][0].read()) for n in names] for replica in self._replicas]
        parts = [[local(source.places[n][0].read()) for n in names] for source, _ in self._pulling]
        return Pass(averages, parts, [share for _, share in self._pulling], self._compiled, self._noise)

    def holds(self) -> bool:
        """Whether the models have the tensors it was made for, or others of their make where that is provided for."""
        # nothing but us moves the memory of averages, but views, of shards and complex numbers, would not go with it
        whole = (r.is_unchanged() if self._has_views else r.is_whole() for r in self._replicas)
        if not all(model.is_unchanged() for model in self._models) or not all(whole):
            return False
        if any(p.requires_grad for p in self._frozen) or not (self._moving.look() and self._copied.look()):
            return False
        if self._peculiar and self._treatment.outdated(self._peculiar):
            return False
        if self._moving.has_changed:
            self._moved = self._made(self._moving.names)
        return True

    def run(self, rates: list[float]) -> None:
        """Move each average by its rate, and copy what is only copied."""
        self._pass.run(rates)
        if self._moving.names:
            self._moved.run(rates)
        self._copied.copy()

    def is_finite(self) -> bool:
        """Whether all that is to be averaged is finite, on all ranks."""
        finite = self._pass.all_finite() and (not self._moving.names or self._moved.all_finite())
        if self._mesh is None:
            return finite
        flag = torch.tensor(float(not finite), device=self._mesh.device_type)
        for dim in range(self._mesh.ndim):
            torch.distributed.all_reduce(flag, group=self._mesh.get_group(dim))
        return not bool(flag)

    def names_of_nonfinite(self) -> list[str]:
        """The tensors of this rank that hold a NaN or infinity."""
        models = [source for source, _ in self._pulling]
        return [n for n in self._names if not all(all_finite([[local(m.places[n][0].read())]]) for m in models)]


class Lookup:
    """Tensors of some names in several models, looked up again when told to.

    Args:
        names: the names.
        models: the models, of which :meth:`copy` takes the first as the source.
    """

    def __init__(self, names: list[str], models: list[Replica]) -> None:
        self.names, self.has_changed = names, False
        places = [[model.places[name][0] for name in names] for model in models]
        self._stores: list[list[tuple[dict[str, Any], str]]] = [
            [(place.store, place.key) for place in of_one] for of_one in places
        ]
        self._seen = [[place.read() for place in of_one] for of_one in places]
        self._views = [list(map(local, seen)) for seen in self._seen]

    def look(self) -> bool:
        """Take up what has been replaced since; False if it is of another make than what was there."""
        self.has_changed = False
        for stores, seen, views in zip(self._stores, self._seen, self._views, strict=True):
            try:
                now = [store[key] for store, key in stores]
            except KeyError:
                return False
            if all(map(operator.is_, now, seen)):
                continue
            self.has_changed = True
            for j, (new, old) in enumerate(zip(now, seen, strict=True)):
                if new is old:
                    continue
                if not isinstance(new, Tensor) or _make(new) != _make(old):
                    return False
                seen[j], views[j] = new, local(new)
        return True

    def copy(self) -> None:
        """Copy the first model's into the others'."""
        for views in self._views[1:] if self.names else ():
            torch._foreach_copy_(views, self._views[0])


def _make(tensor: Tensor) -> tuple[object, ...]:
    return type(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.layout


def _movable(models: list[Replica], names: set[str]) -> set[str]:
    """Those of names that are movable buffers in all models that have them."""
    return {n for n in names if all(is_movable(model.places[n]) for model in models if n in model.places)}
