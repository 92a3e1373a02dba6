"""Structured matrices of blocks, and all structures by name."""

from __future__ import annotations

import torch
from torch import Tensor

from polyak.memory.flat import flat
from polyak.memory.structure import Dense, Diagonal, Structure, Toeplitz, Triangular

BLOCK = 30
SIDE = 15


class Blocks(Structure):
    """Dense blocks along the diagonal, of ``block`` rows each and one of what is left."""

    def __init__(self, block: int = BLOCK) -> None:
        self.block = block

    def _sizes(self, n: int) -> list[int]:
        left = n % self.block
        return [self.block] * (n // self.block) + [left] * (left > 0)

    def _split(self, k: Tensor, n: int) -> list[Tensor]:
        sizes = self._sizes(n)
        parts = k.split([size * size for size in sizes])
        return [part.view(size, size) for part, size in zip(parts, sizes, strict=True)]

    def size(self, n: int) -> int:
        return sum(size * size for size in self._sizes(n))

    def dense(self, k: Tensor, n: int) -> Tensor:
        whole: Tensor = torch.block_diag(*self._split(k, n))
        return whole

    def taken(self, matrix: Tensor) -> Tensor:
        sizes = self._sizes(len(matrix))
        rows = matrix.split(sizes)
        return flat([row.split(sizes, 1)[i] for i, row in enumerate(rows)])

    def project(self, symmetric: Tensor) -> Tensor:
        return self.taken(symmetric)

    def gram(self, rows: Tensor) -> Tensor:
        return flat([part.T @ part for part in rows.split(self._sizes(rows.shape[1]), 1)])

    def square(self, k: Tensor, n: int) -> Tensor:
        return flat([block.T @ block for block in self._split(k, n)])

    def right(self, rows: Tensor, k: Tensor) -> Tensor:
        n = rows.shape[-1]
        pairs = zip(rows.split(self._sizes(n), -1), self._split(k, n), strict=True)
        return torch.cat([part @ block for part, block in pairs], -1)

    def right_transposed(self, rows: Tensor, k: Tensor) -> Tensor:
        n = rows.shape[-1]
        pairs = zip(rows.split(self._sizes(n), -1), self._split(k, n), strict=True)
        return torch.cat([part @ block.T for part, block in pairs], -1)

    def product(self, a: Tensor, b: Tensor, n: int) -> Tensor:
        return flat([x @ y for x, y in zip(self._split(a, n), self._split(b, n), strict=True)])

    def mean_diagonal(self, k: Tensor, n: int) -> Tensor:
        return torch.cat([block.diagonal() for block in self._split(k, n)]).mean()


class Hierarchical(Structure):
    """``[[A, B, B'], [0, diagonal, 0], [0, D, E]]`` with A and E of ``side`` rows: few entries beside the diagonal.

    Nothing n x n is made. With fewer than ``2 * side`` rows A comes first, then E, and the middle is empty.
    """

    def __init__(self, side: int = SIDE) -> None:
        self.side = side

    def _sizes(self, n: int) -> tuple[int, int, int]:
        first = min(n, self.side)
        last = min(n - first, self.side)
        return first, n - first - last, last

    def _split(self, k: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        first, middle, last = self._sizes(n)
        shapes = [(first, first), (first, n - first), (middle,), (last, middle), (last, last)]
        parts = k.split([torch.Size(shape).numel() for shape in shapes])
        a, b, c, d, e = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        return a, b, c, d, e

    def size(self, n: int) -> int:
        first, middle, last = self._sizes(n)
        return first * n + middle + last * (middle + last)

    def dense(self, k: Tensor, n: int) -> Tensor:
        a, b, c, d, e = self._split(k, n)
        lower = torch.cat([k.new_zeros(n - len(a), len(a)), self._lower(c, d, e)], 1)
        return torch.cat([torch.cat([a, b], 1), lower])

    @staticmethod
    def _lower(c: Tensor, d: Tensor, e: Tensor) -> Tensor:
        return torch.cat([torch.cat([torch.diag(c), c.new_zeros(len(c), len(e))], 1), torch.cat([d, e], 1)])

    def taken(self, matrix: Tensor) -> Tensor:
        return self._of_blocks(matrix, 1)

    def project(self, symmetric: Tensor) -> Tensor:
        return self._of_blocks(symmetric, 2)

    def _of_blocks(self, matrix: Tensor, factor: int) -> Tensor:
        first, middle, _ = self._sizes(len(matrix))
        end = first + middle
        a, b = matrix[:first, :first], matrix[:first, first:]
        c = matrix.diagonal()[first:end]
        return flat([a, factor * b, c, factor * matrix[end:, first:end], matrix[end:, end:]])

    def gram(self, rows: Tensor) -> Tensor:
        first, middle, last = rows.split(self._sizes(rows.shape[1]), 1)
        rest = torch.cat([middle, last], 1)
        return flat(
            [first.T @ first, 2 * (first.T @ rest), middle.square().sum(0), 2 * (last.T @ middle), last.T @ last]
        )

    def square(self, k: Tensor, n: int) -> Tensor:
        a, b, c, d, e = self._split(k, n)
        above, beside = b[:, : len(c)], b[:, len(c) :]
        diagonal = above.square().sum(0) + c.square() + d.square().sum(0)
        corner = beside.T @ above + e.T @ d
        return flat([a.T @ a, 2 * (a.T @ b), diagonal, 2 * corner, beside.T @ beside + e.T @ e])

    def right(self, rows: Tensor, k: Tensor) -> Tensor:
        n = rows.shape[-1]
        a, b, c, d, e = self._split(k, n)
        first, middle, last = rows.split(self._sizes(n), -1)
        return torch.cat([first @ a, first @ b + torch.cat([middle * c + last @ d, last @ e], -1)], -1)

    def right_transposed(self, rows: Tensor, k: Tensor) -> Tensor:
        n = rows.shape[-1]
        a, b, c, d, e = self._split(k, n)
        first, middle, last = rows.split(self._sizes(n), -1)
        rest = torch.cat([middle, last], -1)
        return torch.cat([first @ a.T + rest @ b.T, middle * c, middle @ d.T + last @ e.T], -1)

    def product(self, a: Tensor, b: Tensor, n: int) -> Tensor:
        left, beside, middle, below, corner = self._split(a, n)
        a2, b2, c2, d2, e2 = self._split(b, n)
        sizes = [len(c2), len(e2)]
        over_middle, over_last = beside.split(sizes, 1)
        rest = torch.cat([over_middle * c2 + over_last @ d2, over_last @ e2], 1)
        return flat([left @ a2, left @ b2 + rest, middle * c2, below * c2 + corner @ d2, corner @ e2])

    def mean_diagonal(self, k: Tensor, n: int) -> Tensor:
        a, _, c, _, e = self._split(k, n)
        return torch.cat([a.diagonal(), c, e.diagonal()]).mean()


STRUCTURES: dict[str, Structure] = {
    "dense": Dense(),
    "diagonal": Diagonal(),
    "block30diagonal": Blocks(),
    "hierarchical15_15": Hierarchical(),
    "tril": Triangular(upper=False),
    "triu": Triangular(upper=True),
    "triltoeplitz": Toeplitz(upper=False),
    "triutoeplitz": Toeplitz(upper=True),
}
"""The structures by name: dense, diagonal, blocks of 30, hierarchical, triangular, and triangular of one number a
diagonal."""
