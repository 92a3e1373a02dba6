r"""Writing a float32 value into a narrower type without losing what is small.

Rounding to nearest drops every update below half a step of the type (2**-9 of the value in bfloat16), which freezes an
average with ``beta`` above about 0.996 and a weight late in training. Rounding at random keeps updates in the mean; a
Kahan term keeps what the last write lost and adds it to the next.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from polyak.memory._check import require
from polyak.memory.noise import uniform, uniform_bits

_LOW_BITS = 0xFFFF
"""The bits of a float32 that a bfloat16 does not have."""

_LOW_BITS_HALF = 0x1FFF
"""The bits of a float32 that a float16 in its normal range does not have."""


def to_bfloat16_stochastic(x: Tensor, noise: Tensor) -> Tensor:
    r"""Round to bfloat16, up with the probability that makes the expected result :math:`x`.

    The 16 bits that bfloat16 lacks are added to 16 random bits; the carry decides. Values that bfloat16 can hold are
    kept, infinities and NaN stay what they are, and a value beyond the largest bfloat16 may round to infinity.

    Args:
        x: real floating tensor; taken in float32, so float64 is first rounded to that.
        noise: integer tensor of ``x``'s shape whose low 16 bits are uniformly random; the other bits are ignored.

    Returns:
        bfloat16 tensor of ``x``'s shape.

    Raises:
        TypeError: if ``x`` is not real floating or ``noise`` not an integer tensor of 16 or more bits.
        ValueError: if the shapes differ.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must have a real floating dtype, got {x.dtype}")
    if noise.is_floating_point() or noise.is_complex() or noise.dtype.itemsize < 2:
        raise TypeError(f"noise must have an integer dtype of at least 16 bits, got {noise.dtype}")
    require(noise.shape == x.shape, "noise", tuple(noise.shape), f"of x's shape {tuple(x.shape)}")
    return _carried(x.float(), noise.to(torch.int32), _LOW_BITS).to(torch.bfloat16)


def round_stochastic(x: Tensor, dtype: torch.dtype, seed: Tensor) -> Tensor:
    r"""Round to a half-precision type at random, with the expected result :math:`x`; the noise is made from a seed.

    Values that the type can hold are kept, infinities and NaN stay what they are, and a value beyond the largest
    number of the type may round to infinity.

    Args:
        x: float32 ``(n,)``.
        dtype: ``torch.bfloat16`` or ``torch.float16``.
        seed: int64, 0-d; another one each step and tensor. See :func:`~polyak.memory.uniform_bits`.

    Returns:
        ``(n,)`` in ``dtype``.

    Raises:
        ValueError: if ``dtype`` is neither, or shapes are others.
        TypeError: if a dtype is another.
    """
    require(dtype in (torch.bfloat16, torch.float16), "dtype", dtype, "torch.bfloat16 or torch.float16")
    _require_float32(x, "x")
    bits = uniform_bits(x, seed)
    if dtype == torch.bfloat16:
        return to_bfloat16_stochastic(x, bits)
    # Below 2**-14 float16 has equal steps of 2**-24 instead of a fixed number of bits.
    even = torch.floor(x * 2.0**24 + uniform(bits)) * 2.0**-24
    return torch.where(x.abs() < 2.0**-14, even, _carried(x, bits, _LOW_BITS_HALF)).to(torch.float16)


def kahan_add(weight: Tensor, compensation: Tensor, new_value: Tensor) -> tuple[Tensor, Tensor]:
    r"""Write a bfloat16 weight to the nearest and keep what that lost (Kahan's compensated sum).

    ::

        d = (y - w) + c
        w <- nearest(w + d)
        c <- nearest(d - (w_new - w_old))

    with ``y`` the value that a step computed from the bare weight ``w``. Weight and compensation together carry about
    16 bits of mantissa, so that many small steps arrive. Where the new weight is not finite, so is the compensation.

    Args:
        weight: bfloat16, any shape; the weight that the step started from.
        compensation: bfloat16 of that shape; zeros at first.
        new_value: float32 of that shape.

    Returns:
        New weight and new compensation, both bfloat16.

    Raises:
        TypeError: if a dtype is another.
        ValueError: if the shapes differ.
    """
    for name, tensor in (("weight", weight), ("compensation", compensation)):
        if tensor.dtype != torch.bfloat16:
            raise TypeError(f"{name} must have dtype torch.bfloat16, got {tensor.dtype}")
        require(tensor.shape == new_value.shape, name, tuple(tensor.shape), f"of shape {tuple(new_value.shape)}")
    _require_float32(new_value, "new_value")
    old = weight.float()
    change = (new_value - old) + compensation.float()
    new = _nearest_bfloat16(old + change)
    return new.to(torch.bfloat16), (change - (new - old)).to(torch.bfloat16)


def _require_float32(x: Tensor, name: str) -> None:
    if x.dtype != torch.float32:
        raise TypeError(f"{name} must have dtype torch.float32, got {x.dtype}")


def _carried(x: Tensor, noise: Tensor, low: int) -> Tensor:
    """Round float32 values to multiples of ``low + 1`` in their bits: noise added below, the carry decides."""
    rounded = ((x.view(torch.int32) + (noise & low)) & ~low).view(torch.float32)
    return torch.where(x.abs() < math.inf, rounded, x)


def _nearest_bfloat16(x: Tensor) -> Tensor:
    """The nearest bfloat16 as a float32, ties to even.

    In integers because a compiler may drop a cast there and back as pointless.
    """
    bits = x.view(torch.int32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & ~_LOW_BITS).view(torch.float32)
    return torch.where(x.abs() < math.inf, rounded, x)
