"""Structured matrices: classes closed under products, kept as their entries alone, and the projection onto them.

Factors of a preconditioner need not be dense. Each structure here is a linear space of n x n matrices that holds the
identity and the product of any two of its members (SINGD, arXiv:2312.05705). A member is a flat vector of its entries,
so sums and multiples are those of vectors. The projection of a symmetric matrix keeps the entries that the structure
has and doubles those whose mirror it lacks: the gradient by the entries of a function that meets both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Structure(ABC):
    """A linear space of n x n matrices with the identity, closed under products."""

    @abstractmethod
    def size(self, n: int) -> int:
        """How many entries a member has."""

    @abstractmethod
    def dense(self, k: Tensor, n: int) -> Tensor:
        """A member as an n x n matrix."""

    @abstractmethod
    def taken(self, matrix: Tensor) -> Tensor:
        """The entries of a matrix that is a member."""

    @abstractmethod
    def project(self, symmetric: Tensor) -> Tensor:
        """The projection of a symmetric n x n matrix, as entries."""

    def identity(self, n: int, like: Tensor) -> Tensor:
        """The identity."""
        return self.taken(torch.eye(n, dtype=like.dtype, device=like.device))

    def gram(self, rows: Tensor) -> Tensor:
        """The projection of ``rows^T rows``."""
        return self.project(rows.T @ rows)

    def square(self, k: Tensor, n: int) -> Tensor:
        """The projection of ``K^T K``."""
        return self.gram(self.dense(k, n))

    def right(self, rows: Tensor, k: Tensor) -> Tensor:
        """``rows K``."""
        return rows @ self.dense(k, rows.shape[-1])

    def right_transposed(self, rows: Tensor, k: Tensor) -> Tensor:
        """``rows K^T``."""
        return rows @ self.dense(k, rows.shape[-1]).T

    def product(self, a: Tensor, b: Tensor, n: int) -> Tensor:
        """``A B``."""
        return self.taken(self.dense(a, n) @ self.dense(b, n))

    def mean_diagonal(self, k: Tensor, n: int) -> Tensor:
        """The trace over n."""
        return self.dense(k, n).diagonal().mean()


class Dense(Structure):
    """All matrices."""

    def size(self, n: int) -> int:
        return n * n

    def dense(self, k: Tensor, n: int) -> Tensor:
        return k.view(n, n)

    def taken(self, matrix: Tensor) -> Tensor:
        return matrix.reshape(-1)

    def project(self, symmetric: Tensor) -> Tensor:
        return symmetric.reshape(-1)


class Diagonal(Structure):
    """Diagonal matrices; nothing n x n is ever made."""

    def size(self, n: int) -> int:
        return n

    def dense(self, k: Tensor, n: int) -> Tensor:
        return torch.diag(k)

    def taken(self, matrix: Tensor) -> Tensor:
        return matrix.diagonal().clone()

    def project(self, symmetric: Tensor) -> Tensor:
        return self.taken(symmetric)

    def identity(self, n: int, like: Tensor) -> Tensor:
        return torch.ones(n, dtype=like.dtype, device=like.device)

    def gram(self, rows: Tensor) -> Tensor:
        return rows.square().sum(0)

    def square(self, k: Tensor, n: int) -> Tensor:
        return k.square()

    def right(self, rows: Tensor, k: Tensor) -> Tensor:
        return rows * k

    def right_transposed(self, rows: Tensor, k: Tensor) -> Tensor:
        return rows * k

    def product(self, a: Tensor, b: Tensor, n: int) -> Tensor:
        return a * b

    def mean_diagonal(self, k: Tensor, n: int) -> Tensor:
        return k.mean()


class Triangular(Structure):
    """Triangular matrices: the diagonal, and twice the projected part.

    Args:
        upper: the upper triangle, else the lower.
    """

    def __init__(self, upper: bool) -> None:
        self.upper = upper

    def _where(self, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
        rows, columns = torch.tril_indices(n, n, device=device)
        return (columns, rows) if self.upper else (rows, columns)

    def size(self, n: int) -> int:
        return n * (n + 1) // 2

    def dense(self, k: Tensor, n: int) -> Tensor:
        return k.new_zeros(n, n).index_put(self._where(n, k.device), k)

    def taken(self, matrix: Tensor) -> Tensor:
        return matrix[self._where(len(matrix), matrix.device)]

    def project(self, symmetric: Tensor) -> Tensor:
        return self.taken(2 * symmetric - torch.diag(symmetric.diagonal()))


class Toeplitz(Structure):
    """Triangular matrices with one number on each diagonal: the mean of the projected one, off the main one twice it.

    Args:
        upper: the upper triangle, else the lower.
    """

    def __init__(self, upper: bool) -> None:
        self.upper = upper

    def size(self, n: int) -> int:
        return n

    def dense(self, k: Tensor, n: int) -> Tensor:
        i = torch.arange(n, device=k.device)
        distance = i[None, :] - i[:, None] if self.upper else i[:, None] - i[None, :]
        return torch.where(distance >= 0, k[distance.clamp(min=0)], torch.zeros((), dtype=k.dtype, device=k.device))

    def taken(self, matrix: Tensor) -> Tensor:
        return (matrix[0] if self.upper else matrix[:, 0]).clone()

    def project(self, symmetric: Tensor) -> Tensor:
        n = len(symmetric)
        i = torch.arange(n, device=symmetric.device)
        distance = (i[None, :] - i[:, None]).abs().reshape(-1)
        sums = symmetric.new_zeros(n).index_add(0, distance, symmetric.reshape(-1))
        return sums / (n - i)
