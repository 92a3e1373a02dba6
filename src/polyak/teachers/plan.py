"""What one update does to which tensors, worked out once and kept while the tensors stay the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from polyak.memory._check import require
from polyak.teachers.matching import check_fit, is_averageable, is_dtensor, local
from polyak.teachers.noise import Noise
from polyak.teachers.passes import Pass, all_finite
from polyak.teachers.replica import Replica

Sources = list[tuple[Replica, float]]
Anchors = Iterable[tuple[nn.Module, float]]


class Plan:
    """The tensors to average and to copy, of sources (the online model first) and averages.

    Args:
        sources: the online model, then the anchors, each with its share; of fitting tensors, see :func:`follow`.
        replicas: the averages.
        buffers: what becomes of floating buffers, see :class:`polyak.teachers.EMA`.
        compiled: whether large tensors go through a compiled kernel.
        noise: for bfloat16 averages.
    """

    def __init__(self, sources: Sources, replicas: list[Replica], buffers: str, compiled: bool, noise: Noise) -> None:
        targets = [replica.read() for replica in replicas]
        originals = [source.read() for source, _ in sources]
        self._pulling, self._pulled = [source for source, _ in sources], replicas
        tensors = [tensor for model in (*originals, *targets) for tensor in model.values()]
        self._parameters = [places[0].read() for places in sources[0][0].places.values() if places[0].is_parameter]
        self._trained = [p.requires_grad for p in self._parameters]
        self._mesh: Any = next((t.device_mesh for t in tensors if is_dtensor(t)), None)  # type: ignore[attr-defined]
        self._lasting = self._mesh is None and not any(t.is_complex() for t in tensors)
        self._names, copied = sort_names(sources[0][0], buffers)
        pulling = [(x, share) for x, (_, share) in zip(originals, sources, strict=True) if share > 0.0]
        self._sources = [x for x, _ in pulling]
        averages = [[local(target[n]) for n in self._names] for target in targets]
        parts = [[local(x[n]) for n in self._names] for x in self._sources]
        self._pass = Pass(averages, parts, [share for _, share in pulling], compiled, noise)
        self._originals = [local(originals[0][n]) for n in copied]
        self._copies = [[local(target[n]) for n in copied] for target in targets if copied]

    def holds(self) -> bool:
        """Whether the models have the tensors it was made for. Views, of shards and complex numbers, do not last."""
        return (
            self._lasting
            and all(source.is_unchanged() for source in self._pulling)
            and all(replica.is_whole() for replica in self._pulled)  # nothing but us moves these
            and self._trained == [p.requires_grad for p in self._parameters]
        )

    def run(self, rates: list[float]) -> None:
        """Move each average by its rate, and copy what is only copied."""
        self._pass.run(rates)
        for copies in self._copies:
            torch._foreach_copy_(copies, self._originals)

    def is_finite(self) -> bool:
        """Whether all that is to be averaged is finite, on all ranks."""
        finite = self._pass.all_finite()
        if self._mesh is None:
            return finite
        flag = torch.tensor(float(not finite), device=self._mesh.device_type)
        for dim in range(self._mesh.ndim):
            torch.distributed.all_reduce(flag, group=self._mesh.get_group(dim))
        return not bool(flag)

    def names_of_nonfinite(self) -> list[str]:
        """The tensors of this rank that hold a NaN or infinity."""
        return [n for n in self._names if not all(all_finite([[local(x[n])]]) for x in self._sources)]


def sources_of(online: Replica, anchors: Anchors) -> Sources:
    """The online model and the anchors, each with its share.

    Raises:
        ValueError: if a share is out of range, or the tensors of an anchor do not fit.
    """
    sources: Sources = []
    for i, (anchor, share) in enumerate(anchors):
        require(share >= 0.0, f"anchors[{i}]", share, "of a share >= 0")
        replica = Replica(anchor)
        check_fit(replica.read(), online.read(), f"anchors[{i}]", "the online model")
        sources.append((replica, float(share)))
    rest = 1.0 - sum(share for _, share in sources)
    require(rest >= 0.0, "anchors", [share for _, share in sources], "of shares that sum to at most 1")
    return [(online, rest), *sources]


def follow(sources: Sources, replicas: list[Replica]) -> tuple[Sources, list[Replica]]:
    """Models as they are now. Where the online model has untied tensors, so are the averages: their past is the same.

    Raises:
        ValueError: if the tensors of a source do not fit the averages; lists them. Nothing has been changed then.
    """
    online, renewed = sources[0][0], [(source.renewed(), share) for source, share in sources]
    averages = [replica.renewed() for replica in replicas]
    tied = {place.name: first for first, places in online.places.items() for place in places[1:]}
    now, known = renewed[0][0].places, averages[0].places
    aliases = {name: tied[name] for name in now if name not in known and tied.get(name) in known}
    targets = [replica.read() for replica in averages]
    for target in targets:
        target.update({alias: target[first] for alias, first in aliases.items() if first in target})
    for i, (source, _) in enumerate(renewed):
        check_fit(source.read(), targets[0], "the online model" if i == 0 else f"anchors[{i - 1}]")
    for target in targets[1:]:
        check_fit(target, targets[0], "each averaged model", "the first")
    return renewed, [replica.untied(aliases) for replica in averages] if aliases else averages


def sort_names(online: Replica, buffers: str) -> tuple[list[str], list[str]]:
    """Names of the tensors to average and to copy."""
    averaged: list[str] = []
    copied: list[str] = []
    for name, tensor in online.read().items():
        if not is_averageable(tensor):
            copied.append(name)
        elif online.places[name][0].is_parameter:
            (averaged if tensor.requires_grad else copied).append(name)
        elif buffers != "keep":
            (averaged if buffers == "average" else copied).append(name)
    return averaged, copied
