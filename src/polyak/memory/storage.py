r"""Square-matricized factors (SMMF, arXiv:2412.08894): a memory kept as two vectors and a bit for each sign.

A tensor of n entries is seen as a near-square matrix and kept as its row and column sums, plus one bit an entry where
it has signs: about n/8 bytes instead of 4 n.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from polyak.memory._check import require
from polyak.memory._dtype import at_least_float32


class Factors(NamedTuple):
    """A matrix as row factor, column factor and, for a signed matrix, its signs."""

    row: Tensor
    col: Tensor
    sign: Tensor | None = None


@functools.lru_cache(maxsize=4096)
def square_shape(numel: int) -> tuple[int, int]:
    r"""Most nearly square shape of n entries: :math:`(n/i, i)`, i the largest divisor of n with :math:`i \le \sqrt n`.

    A prime number gives ``(n, 1)``, which saves nothing.

    Args:
        numel: n >= 1.

    Returns:
        ``(rows, cols)`` with ``rows >= cols`` and ``rows * cols == numel``.

    Raises:
        ValueError: if ``numel`` is below 1.
    """
    require(numel >= 1, "numel", numel, "at least 1")
    cols = next(i for i in range(math.isqrt(numel), 0, -1) if numel % i == 0)
    return numel // cols, cols


def factorize(matrix: Tensor, sign_bits: Literal[1, 8] | None = None) -> Factors:
    r"""Factor a matrix into its row and column sums: :math:`|M| \approx r c^\top` (SMMF, arXiv:2412.08894).

    :math:`r_i = \sum_j |M_{ij}|` and :math:`c_j = \sum_i |M_{ij}|`, the shorter of the two divided by its sum. The
    product then has the row and column sums of the matrix; a non-negative rank-1 matrix is reproduced exactly.

    Args:
        matrix: real ``(rows, cols)``. Without ``sign_bits`` it must not be negative (unchecked; the signs are lost).
        sign_bits: ``None`` for a non-negative matrix; 1 to keep the signs packed, eight a byte; 8 as a bool matrix.

    Returns:
        ``row`` (rows,) and ``col`` (cols,) in at least float32; ``sign``, set where an entry is positive: ``None``,
        uint8 (ceil(rows cols / 8),), or bool (rows, cols).

    Raises:
        ValueError: if ``matrix`` is not a matrix or ``sign_bits`` is none of these.
    """
    require(matrix.ndim == 2, "matrix", tuple(matrix.shape), "2-dimensional")
    require(sign_bits in (None, 1, 8), "sign_bits", sign_bits, "None, 1 or 8")
    magnitude = at_least_float32(matrix) if sign_bits is None else at_least_float32(matrix).abs()
    row, col = magnitude.sum(dim=1), magnitude.sum(dim=0)
    if matrix.shape[0] < matrix.shape[1]:
        row = _share(row)
    else:
        col = _share(col)
    if sign_bits is None:
        return Factors(row, col)
    positive = matrix > 0
    return Factors(row, col, pack_bits(positive) if sign_bits == 1 else positive)


def reconstruct(row: Tensor, col: Tensor, sign: Tensor | None = None) -> Tensor:
    r"""Undo :func:`factorize`: :math:`\hat M_{ij} = \pm r_i c_j`, negative where the sign bit is not set.

    Args:
        row: ``(rows,)``.
        col: ``(cols,)``.
        sign: ``None`` (no signs), uint8 as packed by :func:`pack_bits`, or bool ``(rows, cols)``.

    Returns:
        ``(rows, cols)`` in the factors' dtype.

    Raises:
        ValueError: if the factors are not vectors or ``sign`` does not fit them.
    """
    require(row.ndim == 1, "row", tuple(row.shape), "1-dimensional")
    require(col.ndim == 1, "col", tuple(col.shape), "1-dimensional")
    matrix = torch.outer(row, col)
    if sign is None:
        return matrix
    positive = sign if sign.dtype == torch.bool else unpack_bits(sign, matrix.numel()).view(matrix.shape)
    require(positive.shape == matrix.shape, "sign", tuple(positive.shape), f"of shape {tuple(matrix.shape)}")
    return torch.where(positive, matrix, -matrix)


def pack_bits(mask: Tensor) -> Tensor:
    """Pack booleans eight to a byte, the first into the lowest bit.

    Args:
        mask: bool tensor, any shape, read in row-major order.

    Returns:
        uint8 tensor ``(ceil(numel / 8),)``; the bits beyond the end are 0.

    Raises:
        TypeError: if ``mask`` is not bool.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must have dtype torch.bool, got {mask.dtype}")
    bits = torch.nn.functional.pad(mask.reshape(-1).to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(dim=1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, numel: int) -> Tensor:
    """Undo :func:`pack_bits`.

    Args:
        packed: uint8 tensor ``(ceil(numel / 8),)``.
        numel: number of booleans, >= 0.

    Returns:
        bool tensor ``(numel,)``.

    Raises:
        TypeError: if ``packed`` is not uint8.
        ValueError: if ``packed`` has another length.
    """
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed must have dtype torch.uint8, got {packed.dtype}")
    bytes_needed = -(-numel // 8)
    require(packed.shape == (bytes_needed,), "packed", tuple(packed.shape), f"of shape ({bytes_needed},)")
    bits = packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (bits & 1).to(torch.bool).reshape(-1)[:numel]


def _share(sums: Tensor) -> Tensor:
    """Divide non-negative sums by their total, unless that is zero."""
    total = sums.sum()
    return sums / torch.where(total == 0, 1.0, total)
