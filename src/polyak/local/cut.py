"""Where to cut a chain of layers into blocks: cut ``c`` comes after the ``c``-th layer, and the last cut is the end."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import accumulate, pairwise


def uniform(num_layers: int, num_blocks: int) -> tuple[int, ...]:
    """Cuts that give all blocks equally many layers, as near as can be: :math:`c_j = \\lfloor jL/K \\rfloor`.

    Args:
        num_layers: :math:`L` >= 1.
        num_blocks: :math:`K` in [1, L].

    Raises:
        ValueError: if an argument is out of range.
    """
    check_num_blocks(num_layers, num_blocks)
    return tuple(num_layers * j // num_blocks for j in range(1, num_blocks + 1))


def balanced(
    costs: Sequence[float], num_blocks: int, ending: Sequence[float] = (), starting: Sequence[float] = ()
) -> tuple[int, ...]:
    """Cuts whose dearest block costs least; among those the ones with the smallest sum of squares.

    With bytes of activations as costs the dearest block is what the memory needed depends on.

    Args:
        costs: what each layer costs, >= 0.
        num_blocks: :math:`K` in [1, len(costs)].
        ending: for each layer but the last, what a block that ends with it costs on top, >= 0: its auxiliary network.
            Nothing if empty.
        starting: for each layer but the first, what a block that starts with it costs on top, >= 0. Nothing if empty.

    Raises:
        ValueError: if an argument is out of range.
    """
    check_num_blocks(len(costs), num_blocks)
    places = len(costs) - 1
    for name, values in (("costs", costs), ("ending", ending), ("starting", starting)):
        if any(not value >= 0 for value in values):
            raise ValueError(f"{name} must be at least 0, got {list(values)!r}")
        if values is not costs and len(values) not in (0, places):
            raise ValueError(f"{name} must be empty or {places} numbers for {len(costs)} layers, got {len(values)}")
    sums = [0.0, *accumulate(float(c) for c in costs)]
    # A block costs to[end] - since[start].
    to = [s + e for s, e in zip(sums, [0.0, *(ending or [0.0] * places), 0.0], strict=True)]
    since = [s - b for s, b in zip(sums, [0.0, *(starting or [0.0] * places), 0.0], strict=True)]
    best = _partition(to, since, num_blocks, float("inf"), largest=True)
    dearest = max(to[b] - since[a] for a, b in pairwise((0, *best)))
    return _partition(to, since, num_blocks, dearest, largest=False)


def _partition(to: list[float], since: list[float], num_blocks: int, limit: float, largest: bool) -> tuple[int, ...]:
    """Cuts of least cost by dynamic programming; no block may cost more than ``limit``.

    The cost of a partition is that of its dearest block if ``largest``, else the sum of the squares of its blocks.
    """
    n = len(to) - 1
    score = [0.0] + [float("inf")] * n
    origins: list[list[int]] = []
    for block in range(1, num_blocks + 1):
        new, origin = [float("inf")] * (n + 1), [0] * (n + 1)
        for end in range(block, n + 1):
            for start in range(block - 1, end):
                cost = to[end] - since[start]
                total = max(score[start], cost) if largest else score[start] + cost * cost
                if cost <= limit and total < new[end]:
                    new[end], origin[end] = total, start
        score = new
        origins.append(origin)
    cuts = [n]
    for origin in reversed(origins[1:]):
        cuts.append(origin[cuts[-1]])
    return tuple(reversed(cuts))


def check_num_blocks(num_layers: int, num_blocks: int) -> None:
    """Raise ``ValueError`` unless ``num_blocks`` is in [1, num_layers]."""
    if not 1 <= num_blocks <= num_layers:
        raise ValueError(f"num_blocks must be in [1, {num_layers}] for {num_layers} layers, got {num_blocks!r}")


def check_cuts(cuts: Sequence[int], num_layers: int, stem: bool) -> tuple[int, ...]:
    """Explicit cuts as a tuple: strictly increasing, the last one ``num_layers``, the first at least 1.

    With a stem the first may be 0: then the stem is a block of its own.

    Raises:
        ValueError: if the cuts are not so.
    """
    found = tuple(operator.index(c) for c in cuts)
    least = 0 if stem else 1
    if not found or found[-1] != num_layers:
        raise ValueError(f"the last of cuts must be the number of layers, {num_layers}, got {list(found)!r}")
    if found[0] < least or any(b <= a for a, b in pairwise(found)):
        raise ValueError(f"cuts must be strictly increasing from at least {least}, got {list(found)!r}")
    return found
