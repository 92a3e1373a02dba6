"""A sum of which a server sees nothing but the result: pairwise masks in fixed point, simulated.

A simulation of the arithmetic, without any cryptography: seeds are handed in, nobody proves anything, and one process
sees all. It shows what masking does to the numbers, and that clients which vanish do not spoil the sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

SCALE = 2.0**16
MODULUS = 2**32


def limit_of(terms: int) -> float:
    """Below which all values must be, so that a sum of so many vectors does not wrap around."""
    return MODULUS / 2 / SCALE / terms


def encoded(vector: Tensor, terms: int) -> Tensor:
    """A vector in fixed point: whole numbers modulo 2^32 of its values times 2^16.

    Args:
        vector: real numbers.
        terms: how many such vectors are added.

    Raises:
        ValueError: values so large that a sum of so many could wrap around.
    """
    limit = limit_of(terms)
    largest = float(vector.abs().max()) if vector.numel() else 0.0
    if not largest < limit:
        raise ValueError(f"vector must be below {limit:g} in all values, for a sum of {terms}, got {largest:g}")
    return (vector.double() * SCALE).round().long() % MODULUS


def decoded(total: Tensor) -> Tensor:
    """The real numbers of a sum in fixed point, in float64."""
    return torch.where(total >= MODULUS // 2, total - MODULUS, total).double() / SCALE


def mask(seed: int, like: Tensor) -> Tensor:
    """The numbers that a pair's seed stands for, uniform modulo 2^32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(MODULUS, like.shape, generator=generator).to(like.device)


def masked(vector: Tensor, place: int, seeds: Tensor) -> Tensor:
    """What a client sends: its vector in fixed point, with the mask of each pair added or taken away.

    Args:
        vector: in fixed point.
        place: of the client among all that agreed on seeds.
        seeds: ``(n, n)``, of which the entry (i, j), i < j, is what i and j have agreed on.
    """
    total = vector
    for other in range(len(seeds)):
        if other != place:
            low, high = min(place, other), max(place, other)
            total = total + (1 if place == low else -1) * mask(int(seeds[low, high]), vector)
    return total % MODULUS


def opened(sent: Mapping[int, Tensor], seeds: Tensor) -> Tensor:
    """The sum of what was sent, the masks shared with clients that sent nothing taken out by their revealed seeds.

    Args:
        sent: by place, what each client that answered sent.
        seeds: as for :func:`masked`.
    """
    gone: Sequence[int] = [i for i in range(len(seeds)) if i not in sent]
    total = torch.stack(list(sent.values())).sum(0)
    for place, vector in sent.items():
        for other in gone:
            low, high = min(place, other), max(place, other)
            total = total - (1 if place == low else -1) * mask(int(seeds[low, high]), vector)
    return decoded(total % MODULUS)
