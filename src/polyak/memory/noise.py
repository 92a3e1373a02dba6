r"""Noise that needs no generator: a hash of where a value stands and of a seed.

Rounding at random inside a compiled pass must draw without state and without reading memory, and the same seed must
give the same bits eagerly and compiled. Each element's 32 bits are the mixed product of its index and the seed, in
integer arithmetic that wraps alike everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STRIDE = 0x9E3779B1 - 2**32  # odd, so that indices stay distinct modulo 2**32
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - 2**32  # of a 32-bit mixer without noticeable bias (H. Prospector's search)


def uniform_bits(like: Tensor, seed: Tensor) -> Tensor:
    r"""Random bits for the elements of a flat tensor: :math:`b_i = \mathrm{mix}(i, \text{seed})`.

    Deterministic: the same length, index and seed give the same bits on every device and in every mode. Elements whose
    indices differ by a multiple of 2**32 share theirs. Seeds that follow each other give unrelated bits.

    Args:
        like: ``(n,)``, any dtype; its length, possibly symbolic, and its device are what counts.
        seed: int64, 0-d; all 64 bits matter.

    Returns:
        int32 ``(n,)``; all 32 bits are uniform.

    Raises:
        ValueError: if ``like`` is not 1-dimensional or ``seed`` not 0-dimensional.
        TypeError: if ``seed`` is not int64.
    """
    if like.ndim != 1:
        raise ValueError(f"like must be 1-dimensional, got {tuple(like.shape)}")
    if seed.ndim != 0:
        raise ValueError(f"seed must be 0-dimensional, got {tuple(seed.shape)}")
    if seed.dtype != torch.int64:
        raise TypeError(f"seed must have dtype torch.int64, got {seed.dtype}")
    key = _mixed(seed.to(torch.int32) ^ _mixed((seed >> 32).to(torch.int32)))
    index = torch.arange(like.shape[0], dtype=torch.int32, device=like.device)
    # Added to the index alone, a key would shift the bits of one seed to make those of another.
    return _mixed((index + key) * _STRIDE, key)


def uniform(bits: Tensor) -> Tensor:
    """Turn random bits into float32 numbers in [0, 1), multiples of 2**-24.

    Args:
        bits: int32, such as :func:`uniform_bits` gives; the upper 24 bits are used.
    """
    return _shifted(bits, 8).to(torch.float32) * 2.0**-24


def _mixed(x: Tensor, between: Tensor | int = _STRIDE) -> Tensor:
    """A bijection of 32 bits in which each bit of ``x`` flips each bit of the result about half of the time."""
    x = (x ^ _shifted(x, 16)) * _FIRST + between
    x = (x ^ _shifted(x, 15)) * _SECOND
    return x ^ _shifted(x, 16)


def _shifted(x: Tensor, by: int) -> Tensor:
    """``x >> by`` that moves zeros in, which int32's own shift does not where the sign is set."""
    return (x >> by) & ((1 << (32 - by)) - 1)
