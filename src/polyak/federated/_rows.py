"""The vectors of several workers as rows of one matrix: what is refused, and passes over blocks of its columns.

A pass never holds more than a block beside its input and its result. Half-precision rows are raised to float32 a block
at a time; what is returned has the dtype of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from polyak.memory._dtype import at_least_float32

COLUMNS = 1 << 13
"""Columns of a block on the CPU: 20 rows of float32 are then 0.7 MB, which a core's cache holds."""
BYTES = 1 << 19
"""Bytes of a row's part that is in use at a time, where rows are gone through one by one."""
LOST = 1e-8
"""A squared distance below this share of the squared lengths that it is the difference of is computed again."""


def checked(vectors: Tensor | Sequence[Tensor], owner: str) -> Tensor:
    """The rows, as they are or stacked; see :class:`~polyak.federated.aggregators.Aggregator` for what is refused."""
    if not isinstance(vectors, Tensor):
        vectors = _stacked(list(vectors), owner)
    if not vectors.is_floating_point():
        raise TypeError(f"{owner}: vectors must be real floating numbers, got {vectors.dtype}")
    if vectors.ndim != 2 or not vectors.numel():
        raise ValueError(f"{owner}: vectors must be (n, d) with at least one of each, got {tuple(vectors.shape)}")
    return vectors.detach()


def _stacked(rows: list[Tensor], owner: str) -> Tensor:
    if not rows:
        raise ValueError(f"{owner}: vectors must be at least one, got an empty list")
    for i, row in enumerate(rows):
        if not isinstance(row, Tensor) or row.ndim != 1:
            got = tuple(row.shape) if isinstance(row, Tensor) else type(row).__name__
            raise TypeError(f"{owner}: vectors[{i}] must be a 1-d tensor, got {got}")
        if row.dtype != rows[0].dtype:
            raise TypeError(f"{owner}: vectors[{i}] must be {rows[0].dtype} as vectors[0], got {row.dtype}")
        if len(row) != len(rows[0]):
            raise ValueError(f"{owner}: vectors[{i}] must have {len(rows[0])} entries as vectors[0], got {len(row)}")
    return torch.stack(rows)


def not_finite(rows: Tensor) -> list[int]:
    """The rows with an entry that is not finite. A finite sum has no such entry, so others alone are looked at."""
    sums = at_least_float32(rows.detach().sum(1, dtype=torch.float32 if rows.dtype.itemsize < 4 else None))
    suspects = (~sums.isfinite()).nonzero().flatten().tolist()
    return [i for i in suspects if not bool(rows[i].isfinite().all())]


def blocks(rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of columns, at least float32: where each stands, and a view or a copy of it. Not to be written."""
    for place in _places(rows, COLUMNS):
        yield place, at_least_float32(rows[:, place])


def _places(rows: Tensor, step: int) -> Iterator[slice]:
    width = rows.shape[1]
    if rows.device.type != "cpu":
        step = max(step, -(-width // 8))
    for start in range(0, width, step):
        yield slice(start, min(start + step, width))


def weighted(rows: Tensor, weights: Tensor, total: float | None = None) -> Tensor:
    """``weights @ rows / total``: one combination of the rows, or one for each row of a matrix of weights."""
    found = rows.new_empty((*weights.shape[:-1], rows.shape[1]))
    for place, block in blocks(rows):
        part = weights.to(block) @ block
        found[..., place] = part if total is None else part / total
    return found


def mean_of(rows: Tensor, chosen: Sequence[int]) -> Tensor:
    """The plain mean of some rows; the others are not read."""
    found = rows.new_empty(rows.shape[1])
    for place in _places(rows, BYTES // rows.element_size()):
        total = at_least_float32(rows[chosen[0], place]).clone()
        for i in chosen[1:]:
            total += rows[i, place]
        found[place] = total.div_(len(chosen))
    return found


def squared_lengths(rows: Tensor, center: Tensor | None = None) -> Tensor:
    """Squared distances of the rows to a point, or to zero: ``(n,)`` in float64 on the CPU, by differences.

    In the rows' precision, float32 at least; in float64 again where a square is too large for that.
    """
    found = _squared_lengths(rows, center, torch.float32)
    if not bool(found.isfinite().all()) and rows.dtype != torch.float64:
        return _squared_lengths(rows, center, torch.float64)
    return found


def _squared_lengths(rows: Tensor, center: Tensor | None, least: torch.dtype) -> Tensor:
    dtype = torch.promote_types(rows.dtype, least)
    found = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    off = None
    for place in _places(rows, BYTES // rows.element_size()):
        at = None if center is None else center[place].to(dtype)
        parts = []
        for row in rows[:, place]:
            part = row.to(dtype)
            if at is not None:
                off = _space(off, part, at.dtype)
                part = torch.sub(part, at, out=off)
            parts.append(torch.dot(part, part))
        found += torch.stack(parts)
    return found.cpu()


def _space(before: Tensor | None, block: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for a block, the one used before if it fits: new pages cost more than the arithmetic on them."""
    if before is not None and before.shape == block.shape:
        return before
    return torch.empty_like(block, dtype=dtype, memory_format=torch.contiguous_format)


def squared_distances(rows: Tensor) -> Tensor:
    """All squared distances: ``(n, n)`` in float64 on the CPU, exactly symmetric, zero for equal rows.

    By a Gram matrix in float64 of the rows as seen from the first, which forgives workers that are close to each other
    and far from zero; pairs for which that still cancels too much are computed by their differences.
    """
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    seen = None
    for _, block in blocks(rows):
        seen = _space(seen, block, torch.float64).copy_(block)
        seen -= seen[0].clone()
        gram.addmm_(seen, seen.T)
    gram = gram.cpu()
    lengths = gram.diagonal()
    scale = lengths[:, None] + lengths
    found = scale - gram - gram.T
    for i, j in (~(found > LOST * scale)).triu(1).nonzero().tolist():  # where squares overflow too
        found[i, j] = found[j, i] = squared_lengths(rows[j : j + 1], rows[i])[0]
    return found.fill_diagonal_(0.0)


def smallest(values: Tensor, count: int) -> list[int]:
    """The places of the smallest values, in rising order of the values; of equal ones the first."""
    return [int(i) for i in values.sort(stable=True).indices[:count]]


def sorted_columns(block: Tensor, ends: tuple[int, ...] = ()) -> list[Tensor]:
    """Each column in rising order, as a list of rows: a sorting network, whose comparisons are whole rows.

    With ``ends``, places at which the rows are cut, the order within each part is left open. For tens of rows a tenth
    of the time of ``torch.sort``, and without its indices, which are twice the data.
    """
    rows = list(block.clone())
    smaller = torch.empty_like(rows[0])
    for i, j in _network(len(rows), ends or tuple(range(len(rows)))):
        torch.minimum(rows[i], rows[j], out=smaller)
        torch.maximum(rows[i], rows[j], out=rows[j])
        rows[i], smaller = smaller, rows[i]
    return rows


@lru_cache(maxsize=8)
def _network(n: int, ends: tuple[int, ...]) -> list[tuple[int, int]]:
    """The places that are compared, in order, but for those whose order nobody asks for."""
    part = [sum(i >= end for end in ends) for i in range(n)]
    asked: set[int] = set()
    kept = []
    for i, j in reversed(_merge_sort(n)):
        if part[i] != part[j] or {i, j} & asked:
            asked |= {i, j}
            kept.append((i, j))
    return kept[::-1]


def _merge_sort(n: int) -> list[tuple[int, int]]:
    """The places that Batcher's odd-even merge sort compares, in order."""
    pairs = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(j, min(j + k, n - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        pairs.append((i, i + k))
            k //= 2
        p *= 2
    return pairs
