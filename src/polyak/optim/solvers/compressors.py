"""Compressors: what a worker sends in place of a vector, with a contract that is said by the class and held to it."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from polyak.declare import COUNT, Declared

ROUNDING = 1e-6
"""The share of a squared norm that rounding may add."""
DRAWS, PROBED, DEVIATIONS, SLACK = 64, 2**16, 4.0, 1.5
"""How an unbiased compressor is tried: so many draws of a vector of at most so many entries; their mean must be right
to so many standard deviations, and their mean square to this factor."""


class Compressor(Declared):
    """Base of compressors; derive from :class:`Unbiased` or :class:`Contractive`.

    A subclass has ``compress(u, generator)``, which draws from that generator alone, ``ratio(entries)``, the constant
    of its contract, and ``sent(entries)``, how many numbers travel. ``compressor(u, generator)`` compresses a vector
    and holds the result to the contract.
    """

    def compress(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """What arrives of ``u`` ``(entries,)``, of its shape and dtype. The generator is one of the CPU."""
        raise NotImplementedError

    def ratio(self, entries: int) -> float:
        """The constant of the contract for a vector of so many entries, at least 1."""
        raise NotImplementedError

    def sent(self, entries: int) -> float:
        """How many numbers travel for a vector of so many entries."""
        raise NotImplementedError

    def check_size(self, entries: int) -> None:
        """Refuse a size of vectors that the arguments do not fit."""

    def verify(self, entries: int) -> None:
        """Try the contract on a drawn vector, as far as one vector cannot show it.

        Raises:
            ValueError: it is broken.
        """

    def __call__(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """What arrives of a vector.

        Args:
            u: ``(entries,)``.
            generator: of the CPU; all that is drawn is drawn from it.

        Raises:
            RuntimeError: the result has another shape or dtype, is not finite, or breaks the contract.
        """
        found = self.compress(u, generator)
        if found.shape != u.shape or found.dtype != u.dtype:
            raise RuntimeError(
                f"{type(self).__name__} made {found.dtype} {tuple(found.shape)} of {u.dtype} {tuple(u.shape)}"
            )
        if not bool(found.isfinite().all()):
            raise RuntimeError(f"{type(self).__name__} returned a vector that is not finite")
        self._hold(u, found)
        return found

    def _hold(self, u: Tensor, found: Tensor) -> None:
        """Refuse a result that breaks what holds for every single vector."""


class Unbiased(Compressor):
    """Base of unbiased compressors: ``E Q(u) = u`` and ``E |Q(u)|^2 <= ratio |u|^2``.

    No single result can show it, so :meth:`verify` draws 64 of one vector: their mean must be the vector up to 4
    standard deviations, and their mean square within 1.5 times what ``ratio`` allows.
    """

    def verify(self, entries: int) -> None:
        """Try both on a drawn vector; the draws are the same always."""
        n, name = min(entries, PROBED), type(self).__name__
        generator = torch.Generator().manual_seed(0)
        u = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device) + 0.5
        u = torch.where(torch.rand(n, generator=generator, device=generator.device) < 0.5, -u, u)
        mean, square = torch.zeros_like(u), 0.0
        for t in range(1, DRAWS + 1):
            found = self(u, generator)
            mean += (found - mean) / t
            square += (float(found @ found) - square) / t
        size = float(u @ u)
        variance = max(square - float(mean @ mean), 0.0) / (DRAWS - 1)
        off = float((mean - u).square().sum())
        if off > DEVIATIONS**2 * variance + ROUNDING * size:
            raise ValueError(
                f"{name} says that it is unbiased and is not: the mean of {DRAWS} results is off by "
                f"{math.sqrt(off / size):.2f} of the vector, with a deviation of {math.sqrt(variance / size):.2f}"
            )
        allowed = self.ratio(n)
        if square > SLACK * allowed * size:
            raise ValueError(f"{name}: E |Q(u)|^2 is {square / size:.3g} |u|^2, and its ratio allows {allowed:.3g}")


class Contractive(Compressor):
    """Base of contractive compressors: ``|C(u) - u|^2 <= (1 - 1 / ratio) |u|^2`` for every vector; each call checks."""

    def _hold(self, u: Tensor, found: Tensor) -> None:
        super()._hold(u, found)
        lost, size = (torch.linalg.vector_norm(x, dtype=torch.float64).square() for x in (found - u, u))
        allowed = 1 - 1 / self.ratio(u.numel())
        if bool(lost > (allowed + ROUNDING) * size):
            raise RuntimeError(
                f"{type(self).__name__} breaks its contract: |C(u) - u|^2 is {float(lost / size):.4g} |u|^2, and its "
                f"ratio allows {allowed:.4g}"
            )


class Identity(Unbiased, Contractive):
    """No compression."""

    def compress(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """The vector."""
        return u

    def ratio(self, entries: int) -> float:
        """1."""
        return 1.0

    def sent(self, entries: int) -> float:
        """All."""
        return float(entries)


class _K(Compressor):
    """A compressor that keeps k entries."""

    k: Annotated[int, COUNT, "how many entries are kept, at most as many as there are; of a shorter vector all"] = 1

    def check_size(self, entries: int) -> None:
        """``k`` is in 1 ... entries."""
        if self.k > entries:
            raise ValueError(f"{type(self).__name__}: k must be in [1, {entries}], the number of entries, got {self.k}")

    def ratio(self, entries: int) -> float:
        """entries / k."""
        return max(1.0, entries / self.k)

    def sent(self, entries: int) -> float:
        """k; indices are not counted."""
        return float(min(self.k, entries))


class RandK(_K, Unbiased):
    """Rand-k: k entries at random, times entries / k; unbiased, ratio entries / k."""

    def compress(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """Zeros but for the chosen entries."""
        chosen = torch.randperm(u.numel(), generator=generator, device=generator.device)[: self.k].to(u.device)
        return torch.zeros_like(u).index_copy(0, chosen, u[chosen] * self.ratio(u.numel()))


class TopK(_K, Contractive):
    """Top-k: the k entries of largest magnitude; contractive, ratio entries / k."""

    def compress(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """Zeros but for the largest entries."""
        chosen = u.abs().topk(min(self.k, u.numel())).indices
        return torch.zeros_like(u).index_copy(0, chosen, u[chosen])


class Natural(Unbiased):
    """Natural compression (arXiv:1905.10988): one of the two nearest powers of 2, at random; unbiased, ratio 9/8.

    Sign and exponent travel, 9 of 32 bits.
    """

    def compress(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """Signed powers of 2; zeros stay."""
        mantissa, exponent = torch.frexp(u)
        drawn = torch.rand(u.shape, generator=generator, dtype=torch.float64, device=generator.device)
        # |u| lies 2 |mantissa| - 1 of the way from 2^(exponent - 1) to twice that
        up = drawn.to(u.device) < 2 * mantissa.abs() - 1
        return torch.ldexp(mantissa.sign(), exponent - 1 + up.to(exponent.dtype))

    def ratio(self, entries: int) -> float:
        """9/8."""
        return 9 / 8

    def sent(self, entries: int) -> float:
        """9/32 a number."""
        return entries * 9 / 32
