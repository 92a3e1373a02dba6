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
    r"""Random bits for the elements of a tensor: :math:`b_i = \mathrm{mix}(i, \text{seed})`, i in row-major order.

    Deterministic: the same place and seed give the same bits on every device and in every mode, whether a tensor comes
    flat or as a matrix. Places that differ by a multiple of 2**32 share theirs; seeds that follow each other do not.

    Args:
        like: ``(n,)`` or ``(rows, cols)``, any dtype; its shape, possibly symbolic, and its device are what counts.
        seed: int64, 0-d; all 64 bits matter.

    Returns:
        int32 of ``like``'s shape; all 32 bits are uniform.

    Raises:
        ValueError: if ``like`` has not one or two dimensions or ``seed`` not 0-dimensional.
        TypeError: if ``seed`` is not int64.
    """
    if like.ndim not in (1, 2):
        raise ValueError(f"like must be 1- or 2-dimensional, got {tuple(like.shape)}")
    if seed.ndim != 0:
        raise ValueError(f"seed must be 0-dimensional, got {tuple(seed.shape)}")
    if seed.dtype != torch.int64:
        raise TypeError(f"seed must have dtype torch.int64, got {seed.dtype}")
    low, high = seed.to(torch.int32), (seed >> 32).to(torch.int32)
    start = low * _FIRST + high * _SECOND  # far from each other for seeds that are close
    x = (_places(like) + start) * _STRIDE
    x = (x ^ _shifted(x, 16)) * _FIRST + (high - low)
    x = (x ^ _shifted(x, 15)) * _SECOND
    return x ^ _shifted(x, 16)


def uniform(bits: Tensor) -> Tensor:
    """Turn random bits into float32 numbers in [0, 1), multiples of 2**-24.

    Args:
        bits: int32, such as :func:`uniform_bits` gives; the upper 24 bits are used.
    """
    return _shifted(bits, 8).to(torch.float32) * 2.0**-24


def _shifted(x: Tensor, by: int) -> Tensor:
    """``x >> by`` that moves zeros in, which int32's own shift does not where the sign is set."""
    return (x >> by) & ((1 << (32 - by)) - 1)


def _places(like: Tensor) -> Tensor:
    """0, 1, 2, ... in row-major order, as int32."""
    along = torch.arange(like.shape[-1], dtype=torch.int32, device=like.device)
    if like.ndim == 1:
        return along
    return torch.arange(like.shape[0], dtype=torch.int32, device=like.device).unsqueeze(1) * like.shape[1] + along
