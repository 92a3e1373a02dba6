r"""Moving averages towards weights in about one pass over memory, without temporaries of their size.

:math:`e_i \leftarrow e_i + \rho_i\,(x - e_i)` with :math:`x = \sum_k s_k \theta_k`, for several averages :math:`e_i` of
one target. One average of one source is torch's own loop over lists. Else small tensors go in groups, and a large one
through a compiled loop, which reads each :math:`\theta_k` once however many averages there are, or, without a compiler,
block by block through the caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from polyak.memory import ema_, to_bfloat16_stochastic
from polyak.teachers import kernel
from polyak.teachers.noise import Bits, Noise

SMALL = 32 * 1024
"""Elements up to which torch runs an elementwise operation on one thread: below, starting a team costs more."""
GROUP = 1024 * 1024
"""Elements of a group of small tensors, and of a block on an accelerator: bounds the temporaries."""


class Pass:
    """Tensors sorted once into what goes together; :meth:`run` then moves all averages.

    Args:
        averages: lists of real floating tensors, one list an average, all alike in shapes.
        sources: lists of tensors of those shapes, of any real floating dtype; an average moves towards their sum.
        shares: weight of each source in the sum.
        compiled: whether large tensors go through a compiled kernel.
        noise: for the stochastic rounding of bfloat16 averages.
    """

    def __init__(
        self,
        averages: Sequence[Sequence[Tensor]],
        sources: Sequence[Sequence[Tensor]],
        shares: Sequence[float],
        compiled: bool,
        noise: Noise,
    ) -> None:
        self._shares, self._compiled, self._noise = list(shares), compiled, noise
        # of all tensors, empty ones too: ranks with other shards draw as many seeds
        self._rounded = any(x.dtype == torch.bfloat16 for average in averages for x in average)
        everything = [*sources, *averages]
        groups = list(_groups(everything))
        self._alone = [sources[0][g[0]].numel() > SMALL and not _is_plain(everything, g[0]) for g in groups]
        self._averages = [[[average[j] for j in group] for average in averages] for group in groups]
        self._parts = [[[source[j] for j in group] for source in sources] for group in groups]
        self._checked = [[source[j] for j in group] for source in sources for group in _groups([source])]

    @torch.no_grad()
    def run(self, rates: Sequence[float]) -> None:
        """Move each average by its rate, in [0, 1]; 0 leaves it and 1 copies, bit for bit."""
        firsts = [average[0] for averages in self._averages for average in averages]
        rounded = self._rounded or any(x.dtype == torch.bfloat16 for x in firsts)  # moved there since
        bits = self._noise.next() if rounded else None
        for averages, parts, alone in zip(self._averages, self._parts, self._alone, strict=True):
            goals = [(average, rate) for average, rate in zip(averages, rates, strict=True) if rate > 0.0]
            if not alone:
                _in_group(goals, parts, self._shares, bits)
            elif goals:
                large = [(average[0], rate) for average, rate in goals]
                _one_large(large, [p[0] for p in parts], self._shares, self._compiled, bits)

    def all_finite(self) -> bool:
        """Whether no element of the sources is infinite or NaN."""
        return all_finite(self._checked)


def _groups(tensors: Sequence[Sequence[Tensor]]) -> Iterator[list[int]]:
    """Indices of tensors to be taken together: small ones that are alike in all lists; a large one is alone.

    Plain ones of any size are together: one call of torch's does for all of them what is to be done.
    """
    open_groups: dict[object, tuple[list[int], int]] = {}
    for j, first in enumerate(tensors[0]):
        kind = tuple((x[j].dtype, x[j].device) for x in tensors)
        whole = _is_plain(tensors, j)
        if first.numel() > SMALL and not whole:
            yield [j]
        elif first.numel():
            group, size = open_groups.get(kind, ([], 0))
            group.append(j)
            open_groups[kind] = (group, size + first.numel())
            if size > GROUP and not whole:
                yield open_groups.pop(kind)[0]
    yield from (group for group, _ in open_groups.values())


def _is_plain(tensors: Sequence[Sequence[Tensor]], j: int) -> bool:
    """Whether it is one average of one source, and of its dtype, on its device, without stochastic rounding."""
    if len(tensors) != 2:
        return False
    source, average = tensors[0][j], tensors[1][j]
    return source.dtype == average.dtype != torch.bfloat16 and source.device == average.device


def _in_group(
    goals: list[tuple[list[Tensor], float]], parts: list[list[Tensor]], shares: Sequence[float], bits: Bits | None
) -> None:
    for averages, rate in goals:
        dtype, device = averages[0].dtype, averages[0].device
        target = [x.to(device) for x in parts[0]] if parts[0][0].device != device else parts[0]
        if len(parts) > 1:
            target = [_mix([p[j] for p in parts], shares, dtype, device) for j in range(len(parts[0]))]
        if dtype == torch.bfloat16 and rate < 1.0:
            for average, x in zip(averages, target, strict=True):
                _round_into(average, x, rate, bits)
        else:
            ema_(averages, target, rate)


def _mix(parts: Sequence[Tensor], shares: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What an average moves towards, in the dtype that it is computed in."""
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    if len(parts) == 1:
        return parts[0].to(device, wide)
    total = parts[0].to(device, wide) * shares[0]
    for part, share in zip(parts[1:], shares[1:], strict=True):
        total.add_(part.to(device, wide), alpha=share)
    return total


def _round_into(average: Tensor, target: Tensor, rate: float, bits: Bits | None) -> None:
    """Update a bfloat16 average: rounded to nearest, steps below 2**-9 of a value would all be lost."""
    exact = average.float().lerp_(target.to(average.device, torch.float32), rate)
    assert bits is not None  # drawn wherever an average is bfloat16
    average.copy_(to_bfloat16_stochastic(exact, bits.draw(exact)))


def _one_large(
    goals: list[tuple[Tensor, float]],
    parts: list[Tensor],
    shares: Sequence[float],
    compiled: bool,
    bits: Bits | None,
) -> None:
    if len(parts) == 1:
        for average, _ in (g for g in goals if g[1] == 1.0):
            average.copy_(parts[0])
        goals = [g for g in goals if g[1] < 1.0]
    flat = _flattened([a for a, _ in goals] + parts) if goals else None
    if flat is None:
        for average, rate in goals:
            _in_group([([average], rate)], [[p] for p in parts], shares, bits)
        return
    averages, rates, parts = flat[: len(goals)], [rate for _, rate in goals], flat[len(goals) :]
    rounded = any(a.dtype == torch.bfloat16 for a in averages)
    together = not rounded and max(rates) < 1.0 and len({x.device for x in flat}) == 1
    if compiled and together and kernel.move(averages, parts, shares, rates):
        return
    if len(flat) == 2 and flat[0].dtype == flat[1].dtype and flat[0].device == flat[1].device and not rounded:
        averages[0].lerp_(parts[0], rates[0])
    else:
        _in_blocks(averages, parts, shares, rates, bits)


def _flattened(tensors: list[Tensor]) -> list[Tensor] | None:
    """The memory of tensors laid out alike as arrays of one dimension; ``None`` if they are not, or have gaps."""
    first = tensors[0]
    if any(t.stride() != first.stride() for t in tensors) or not torch.ops.aten.is_non_overlapping_and_dense(first):
        return None
    return [t.detach().as_strided((t.numel(),), (1,)) for t in tensors]


def _in_blocks(
    averages: list[Tensor], parts: list[Tensor], shares: Sequence[float], rates: list[float], bits: Bits | None
) -> None:
    """What one block needs stays in the caches until all averages have taken it."""
    size = SMALL if averages[0].device.type == "cpu" else GROUP
    for start in range(0, averages[0].numel(), size):
        pieces = [p[start : start + size] for p in parts]
        for average, rate in zip(averages, rates, strict=True):
            block = average[start : start + size]
            target = _mix(pieces, shares, average.dtype, average.device)
            if rate == 1.0:
                block.copy_(target)
            elif block.dtype == torch.bfloat16:
                _round_into(block, target, rate, bits)
            else:
                block.lerp_(target, rate)


@torch.no_grad()
def all_finite(groups: Sequence[Sequence[Tensor]]) -> bool:
    """Whether no element is infinite or NaN, from sums: a sum that overflows sets off a closer look."""
    sums = []
    for group in groups:
        whole = group[0] if len(group) == 1 else torch.cat([x.reshape(-1) for x in group])
        sums.append(whole.sum(dtype=torch.float32 if whole.dtype.itemsize < 4 else None).double())
    if not sums or bool(torch.stack([s.to(sums[0].device) for s in sums]).sum().isfinite()):
        return True
    return all(bool(x.isfinite().all()) for group in groups for x in group)
