"""What one update does to which tensors, worked out once and kept while the tensors stay the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polyak.teachers.matching import check_fit, is_averageable, is_dtensor, local
from polyak.teachers.passes import Pass, Rounding, all_finite
from polyak.teachers.replica import Replica

Sources = list[tuple[Replica, float]]


class Plan:
    """The tensors to average and to copy, of sources (the online model first) and averages.

    Args:
        sources: the online model, then the anchors, each with its share.
        replicas: the averages.
        buffers: what becomes of floating buffers, see :class:`polyak.teachers.EMA`.
        compiled: whether large tensors go through a compiled kernel.
        noise: for bfloat16 averages.

    Raises:
        ValueError: if the tensors of a source do not fit the averages; lists them.
    """

    def __init__(
        self, sources: Sources, replicas: list[Replica], buffers: str, compiled: bool, noise: Rounding
    ) -> None:
        targets = [replica.read() for replica in replicas]
        originals = [source.read() for source, _ in sources]
        for i, original in enumerate(originals):
            check_fit(original, targets[0], "the online model" if i == 0 else f"anchors[{i - 1}]")
        self._tensors = current(sources, replicas)
        self._ids = list(map(id, self._tensors))
        self._online = len(sources[0][0].places)
        self._trained = [t.requires_grad for t in self._tensors[: self._online]]
        self._lasting = not any(is_dtensor(t) or t.is_complex() for t in self._tensors)
        self._names, copied = sort_names(sources[0][0], buffers)
        pulling = [(x, share) for x, (_, share) in zip(originals, sources, strict=True) if share > 0.0]
        self._sources = [x for x, _ in pulling]
        averages = [[local(target[n]) for n in self._names] for target in targets]
        parts = [[local(x[n]) for n in self._names] for x in self._sources]
        self._pass = Pass(averages, parts, [share for _, share in pulling], compiled, noise)
        self._originals = [local(originals[0][n]) for n in copied]
        self._copies = [[local(target[n]) for n in copied] for target in targets if copied]

    def is_for(self, tensors: list[Tensor]) -> bool:
        """Whether it was made for these very tensors. Views, of shards and complex numbers, do not last."""
        return (
            self._lasting
            and self._ids == list(map(id, tensors))
            and self._trained == [t.requires_grad for t in tensors[: self._online]]
        )

    def run(self, rates: list[float]) -> None:
        """Move each average by its rate, and copy what is only copied."""
        self._pass.run(rates)
        for copies in self._copies:
            torch._foreach_copy_(copies, self._originals)

    def is_finite(self) -> bool:
        """Whether all that is to be averaged is finite, on all ranks."""
        finite = self._pass.all_finite()
        mesh: Any = next((t.device_mesh for t in self._tensors if is_dtensor(t)), None)  # type: ignore[attr-defined]
        if mesh is None:
            return finite
        flag = torch.tensor(float(not finite), device=mesh.device_type)
        for dim in range(mesh.ndim):
            torch.distributed.all_reduce(flag, group=mesh.get_group(dim))
        return not bool(flag)

    def names_of_nonfinite(self) -> list[str]:
        """The tensors of this rank that hold a NaN or infinity."""
        return [n for n in self._names if not all(all_finite([[local(x[n])]]) for x in self._sources)]


def current(sources: Sources, replicas: list[Replica]) -> list[Tensor]:
    """All tensors that an update touches, as they are now."""
    return [tensor for model in [*(s for s, _ in sources), *replicas] for tensor in model.tensors()]


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
