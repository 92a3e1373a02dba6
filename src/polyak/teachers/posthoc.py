"""Power-function averages of a width that was not tracked, rebuilt from stored ones (EDM2, arXiv:2312.02696)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyak.memory import posthoc_weights
from polyak.memory._check import require
from polyak.teachers.matching import check_fit

Snapshot = Mapping[str, Any] | str | Path


@torch.no_grad()
def reconstruct(
    snapshots: Sequence[Snapshot], sigma_rel: float, t: float | None = None, normalise: bool = True
) -> dict[str, Tensor]:
    r"""The average of another width, :math:`\sum_i x_i e_i`, fitted by the stored ones (EDM2, algorithm 3).

    Needs snapshots of two widths at least for a good fit, taken along the run; see
    :func:`polyak.memory.posthoc_weights` for the equations.

    Args:
        snapshots: what :meth:`polyak.teachers.EMA.snapshot` gave, or files that hold it, which are read one at a time.
        sigma_rel: relative width of the average sought, in (0, 0.2887].
        t: time as of which it is sought, in (0, last t]; ``None`` is the last.
        normalise: whether the weights are scaled to sum to 1, as EDM2 does and ema-pytorch does not.

    Returns:
        Tensors by name in the snapshots' dtypes; sums are formed in float32 at least. Tensors that are only copied
        (integers, frozen ones, buffers unless ``buffers="average"``) are those of the snapshot closest before ``t``.

    Raises:
        ValueError: on no snapshots, tensors that do not fit, or numbers out of range.
    """
    require(len(snapshots) >= 1, "snapshots", snapshots, "at least one snapshot")
    about = [_about(snapshot) for snapshot in snapshots]
    times, widths = [a[0] for a in about], [a[1] for a in about]
    end = max(times) if t is None else t
    weights = posthoc_weights(times, widths, end, sigma_rel, normalise).tolist()
    nearest = max(range(len(times)), key=lambda i: (times[i] <= end, times[i] if times[i] <= end else -times[i]))
    first = _tensors(snapshots[0])
    averaged = set(_loaded(snapshots[0])["averaged"])
    sums = {name: torch.zeros_like(x, dtype=_wide(x)) for name, x in first.items() if name in averaged}
    rest: dict[str, Tensor] = {}
    for i, (snapshot, weight) in enumerate(zip(snapshots, weights, strict=True)):
        tensors = _tensors(snapshot)
        check_fit(tensors, first, f"snapshots[{i}]", "snapshots[0]")
        for name, total in sums.items():
            total.add_(tensors[name].to(total.dtype), alpha=weight)
        if i == nearest:
            rest = {name: x.clone() for name, x in tensors.items() if name not in sums}
    return {name: sums[name].to(x.dtype) if name in sums else rest[name] for name, x in first.items()}


def _about(snapshot: Snapshot) -> tuple[float, float]:
    loaded = _loaded(snapshot)
    return float(loaded["t"]), float(loaded["sigma_rel"])


def _tensors(snapshot: Snapshot) -> dict[str, Tensor]:
    return dict(_loaded(snapshot)["tensors"])


def _loaded(snapshot: Snapshot) -> Mapping[str, Any]:
    if isinstance(snapshot, Mapping):
        return snapshot
    loaded: Mapping[str, Any] = torch.load(snapshot, map_location="cpu", weights_only=True, mmap=True)
    return loaded


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
