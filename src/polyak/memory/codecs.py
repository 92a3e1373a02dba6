r"""Codecs: how a memory is kept between steps, read and written in the pass that updates it.

A step decodes what is stored into float32, computes the new memory from that, and encodes it again. What is stored is
rounded at random so that its mean is the memory itself: a change too small for the format still arrives in the mean.

=============  =================  =======================================================================
name           bytes a number     what it keeps
=============  =================  =======================================================================
``float32``    4                  the memory as it is
``bfloat16``   2                  8 bits of mantissa
``int8``       1 + 1/64           blocks of 256 with a float32 scale, steps finer towards zero
``factored``   1/8, or near 0     row and column sums of the squared-up array, a bit for each sign
=============  =================  =======================================================================

The functions hold under ``torch.export`` with a number of elements that is not known, and give the same bits eagerly
and compiled on a CPU, but for ``factored``, whose sums may be taken in another order. ``int8`` takes and gives arrays
flat or as (blocks, 256), with the same bits, and ``factored`` takes them flat or as (rows, cols). Where they are part
of a compiled pass, all arrays of that pass should come in that second shape: the loop over blocks or rows is then the
one loop of the pass. With flat ones a compiler divides every index by 256, and nothing is vectorized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from polyak.memory._check import require
from polyak.memory.noise import uniform, uniform_bits
from polyak.memory.rounding import round_stochastic
from polyak.memory.storage import factorize, reconstruct, square_shape

Parts = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Suffix of a stored tensor's name (empty for the main one) -> its shape and dtype."""

BLOCK = 256
SMALLEST = 4096
"""8 bits are for tensors of so many elements or more; what smaller ones take is small anyway."""


class Codec(Protocol):
    """One form of storage for the float memories of a slot. Values of these classes are hashable and compare equal."""

    @property
    def name(self) -> str:
        """The form, as users name it."""

    def parts(self, numel: int) -> Parts:
        """What is stored for a memory of ``numel`` elements, in the order of ``decode`` and ``encode``."""

    def fits(self, numel: int) -> bool:
        """Whether a memory of ``numel`` elements can be and is worth being stored so; else it stays float32."""

    def decode(self, parts: Sequence[Tensor], numel: int) -> Tensor:
        """The stored tensors as float32 ``(numel,)``; all zeros for stored zeros."""

    def encode(self, value: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
        """A float32 ``(numel,)`` as tensors to store. ``seed``: int64, 0-d, another one each step and memory."""


@dataclass(frozen=True)
class Float32:
    """The memory as it is."""

    name = "float32"

    def parts(self, numel: int) -> Parts:
        """One float32 tensor."""
        return {"": ((numel,), torch.float32)}

    def fits(self, numel: int) -> bool:
        """Always."""
        return True

    def decode(self, parts: Sequence[Tensor], numel: int) -> Tensor:
        """The one part."""
        return parts[0]

    def encode(self, value: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
        """The value, unrounded."""
        return (value,)


@dataclass(frozen=True)
class Bfloat16:
    """Half the bytes: the upper 16 bits, rounded at random. The relative error of one number is below 2**-7."""

    name = "bfloat16"

    def parts(self, numel: int) -> Parts:
        """One bfloat16 tensor."""
        return {"": ((numel,), torch.bfloat16)}

    def fits(self, numel: int) -> bool:
        """Always."""
        return True

    def decode(self, parts: Sequence[Tensor], numel: int) -> Tensor:
        """The part in float32, exact."""
        return parts[0].float()

    def encode(self, value: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
        """See :func:`~polyak.memory.round_stochastic`."""
        return (round_stochastic(value, torch.bfloat16, seed),)


@dataclass(frozen=True)
class Int8:
    r"""Eight bits a number and one float32 scale a block of 256.

    With ``s`` the largest magnitude of the block, :math:`x \approx s\, \mathrm{sign}(c) (|c|/127)^4` for signed
    memories, ``c`` in -127..127, and :math:`x \approx s\, (c/255)^8` for non-negative ones, ``c`` in 0..255. Between
    the two representable neighbours the choice is random with ``x`` as its mean.

    The powers are those with the smallest error of Adam's ``m / sqrt(v)`` among the cheap ones, as the root mean square
    relative to the exact one, with one memory stored, in a small convolutional network and in a byte-level transformer:
    for ``m`` 0.23 and 0.98 at power 1, 0.056 and 0.087 at 2, 0.042 and 0.050 at 3, 0.044 and 0.053 at 4; for ``v`` 0.16
    and 0.14 at 2, 0.092 and 0.070 at 4, 0.049 and 0.034 at 6, 0.050 and 0.026 at 8. An 8-bit float was no better (0.058
    and 0.088 for ``m``, 0.075 and 0.046 for ``v``, each at its best split), bfloat16 has 0.005 to 0.009. A third power
    has no root that rounds alike everywhere.

    A positive number is never stored as 0 (it would be divided by) but as the smallest one, ``s 255**-8``; in that last
    corner the mean is too large. Zeros stay zero, nothing becomes negative. An infinity or NaN makes the numbers of its
    block that are not the infinity itself NaN: one scale serves all.

    Args:
        signed: whether the memory has signs.
    """

    signed: bool = True
    name = "int8"

    def parts(self, numel: int) -> Parts:
        """Codes, and the scales under ``_scale``."""
        codes = torch.int8 if self.signed else torch.uint8
        return {"": ((numel,), codes), "_scale": ((numel // BLOCK,), torch.float32)}

    def fits(self, numel: int) -> bool:
        """From 4,096 elements, in whole blocks of 256."""
        return numel >= SMALLEST and numel % BLOCK == 0

    def decode(self, parts: Sequence[Tensor], numel: int) -> Tensor:
        """Codes raised to their power, times their block's scale."""
        codes, scale = parts
        c = codes.view(-1, BLOCK).float()
        square = c * c
        share = square * c * c.abs() * 127.0**-4 if self.signed else (square * square).square() * 255.0**-8
        return (share * scale.unsqueeze(1)).view(codes.shape)

    def encode(self, value: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
        """Scales from the blocks' largest magnitudes; codes rounded at random between neighbouring powers."""
        blocks = value.view(-1, BLOCK)
        magnitude = blocks.abs() if self.signed else blocks.clamp(min=0)
        scale = magnitude.amax(dim=1, keepdim=True)
        share = magnitude / torch.where(scale == 0, 1.0, scale)
        u = uniform(uniform_bits(blocks, seed))
        if self.signed:
            code = _code(share, u, 127, 2)
            code = torch.where(blocks < 0, -code, code).to(torch.int8)
        else:
            code = torch.maximum(_code(share, u, 255, 3), (magnitude > 0).float()).to(torch.uint8)
        return code.view(value.shape), scale.view(-1)


@dataclass(frozen=True)
class Factored:
    """Row and column sums of the array seen as a near-square matrix, and a bit a sign (SMMF, arXiv:2412.08894).

    Deterministic: the seed is not used. Rank one is a coarse memory; row and column sums are kept exactly.

    Args:
        signed: whether the memory has signs. A non-negative memory takes about ``8 sqrt(n)`` bytes.
        sign_bits: 1 to pack the signs, eight a byte; 8 to keep them as bool.
        dtype: of the factors; float64 for float64 memories.
    """

    signed: bool = True
    sign_bits: Literal[1, 8] = 1
    dtype: torch.dtype = torch.float32
    name = "factored"

    def parts(self, numel: int) -> Parts:
        """Factors under ``_row`` and ``_col``, signs under ``_sign``."""
        rows, cols = square_shape(numel)
        found: Parts = {"_row": ((rows,), self.dtype), "_col": ((cols,), self.dtype)}
        if self.signed:
            packed = ((-(-numel // 8),), torch.uint8)
            found["_sign"] = packed if self.sign_bits == 1 else ((rows, cols), torch.bool)
        return found

    def fits(self, numel: int) -> bool:
        """Where the factors are shorter than half of the array: a prime number of elements saves nothing."""
        return numel >= 1 and 2 * sum(square_shape(numel)) < numel

    def decode(self, parts: Sequence[Tensor], numel: int) -> Tensor:
        """See :func:`~polyak.memory.reconstruct`."""
        return reconstruct(*parts).view(-1)

    def encode(self, value: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
        """See :func:`~polyak.memory.factorize`; ``value`` may come as (rows, cols).

        It must where the number of elements is not known when the graph is traced: two sides then are.
        """
        matrix = value if value.ndim == 2 else value.view(square_shape(value.shape[0]))
        row, col, sign = factorize(matrix, self.sign_bits if self.signed else None)
        return (row, col) if sign is None else (row, col, sign)


def codec(name: str, signed: bool = True, dtype: torch.dtype = torch.float32) -> Codec:
    """The codec of that name.

    Args:
        name: ``"float32"``, ``"bfloat16"``, ``"int8"`` or ``"factored"``.
        signed: whether the memory has signs; a second moment has not.
        dtype: of the memory, which the factors of ``"factored"`` have too.

    Raises:
        ValueError: if ``name`` is none of these.
    """
    known: dict[str, Codec] = {
        one.name: one for one in (Float32(), Bfloat16(), Int8(signed), Factored(signed, dtype=dtype))
    }
    require(name in known, "name", name, "one of " + ", ".join(map(repr, known)))
    return known[name]


def _code(share: Tensor, u: Tensor, most: int, roots: int) -> Tensor:
    """The code c with ``(c / most)**(2**roots)`` next to a share in [0, 1]: below it, or above with the chance due.

    Square roots and products only: these round alike eagerly and compiled, which powers do not.
    """
    scaled = share * float(most) ** 2**roots
    code = scaled
    for _ in range(roots):
        code = code.sqrt()
    code = code.floor().clamp(max=most - 1.0)
    low, high = code, code + 1
    for _ in range(roots):
        low, high = low * low, high * high
    code = code + (u * (high - low) < scaled - low).float()
    return torch.where(share == share, code, float(most))  # not isnan, which compilers leave to a loop over elements
