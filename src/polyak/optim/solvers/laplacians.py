"""Laplacians: of graphs, dense or sparse, and of periodic grids; each solves the systems that a splitting asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

LARGEST_DENSE = 5_000
"""Most nodes of a graph whose matrix is factored."""
Solver = Literal["auto", "cholesky", "cg"]
Solve = Callable[[Tensor], Tensor]


class Laplacian(Protocol):
    """A symmetric operator L without negative eigenvalues, on fields whose first dimensions are its ``shape``."""

    shape: tuple[int, ...]
    volume: float

    def apply(self, u: Tensor) -> Tensor:
        """``L u``."""

    def solver(self, diagonal: Tensor | float, scale: float) -> Solve:
        """What solves ``(diagonal + scale * L) x = b``."""


class Grid:
    """Minus the Laplace operator on a periodic grid, by its Fourier symbol ``|k|^2``.

    Args:
        shape: points along each dimension, at least 2.
        spacing: distance of neighbours, above 0; ``1 / n`` makes a unit square of n x n points.
    """

    def __init__(self, shape: Sequence[int], spacing: float = 1.0) -> None:
        if not shape or any(n < 2 for n in shape):
            raise ValueError(f"shape must be at least 2 points along each dimension, got {tuple(shape)}")
        if not 0 < spacing < math.inf:
            raise ValueError(f"spacing must be in (0, inf), got {spacing!r}")
        self.shape: tuple[int, ...] = tuple(shape)
        self.spacing = spacing
        self.volume = spacing ** len(self.shape)

    def _symbol(self, like: Tensor) -> Tensor:
        """``|k|^2``, in the shape of the field's transform."""
        found = torch.zeros((), dtype=like.dtype, device=like.device)
        for i, n in enumerate(self.shape):
            k = 2 * math.pi * torch.fft.fftfreq(n, self.spacing, dtype=like.dtype, device=like.device)
            found = found + k.square().view(-1, *[1] * (like.ndim - 1 - i))
        return found

    def _filtered(self, u: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        axes = tuple(range(len(self.shape)))
        transformed: Tensor = torch.fft.ifftn(torch.fft.fftn(u, dim=axes) * change(self._symbol(u)), dim=axes)
        return transformed.real

    def apply(self, u: Tensor) -> Tensor:
        """``L u``."""
        return self._filtered(u, lambda symbol: symbol)

    def solver(self, diagonal: Tensor | float, scale: float) -> Solve:
        """What solves ``(diagonal + scale * L) x = b``; the diagonal must be one number.

        Raises:
            ValueError: a diagonal that differs from point to point.
        """
        if isinstance(diagonal, Tensor):
            raise ValueError("labelled points need a graph; a grid has none")
        return lambda b: self._filtered(b, lambda symbol: 1 / (diagonal + scale * symbol))


class Graph:
    """A graph's Laplacian, as a symmetric matrix (n, n), dense or sparse.

    Args:
        matrix: the Laplacian.
        solver: ``"cholesky"`` factors it once (up to 5,000 nodes), ``"cg"`` takes conjugate gradients; ``"auto"``
            factors what is dense.

    Raises:
        ValueError: a matrix that is not square, finite and symmetric, a negative eigenvalue, too many nodes to factor.
    """

    volume = 1.0

    def __init__(self, matrix: Tensor, solver: Solver = "auto") -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"the Laplacian must be a square matrix, got shape {tuple(matrix.shape)}")
        if solver not in ("auto", "cholesky", "cg"):
            raise ValueError(f'solver must be "auto", "cholesky" or "cg", got {solver!r}')
        sparse = matrix.layout is not torch.strided
        self.matrix = matrix.to_sparse_coo().coalesce() if sparse else matrix
        values = self.matrix.values() if sparse else matrix
        if not bool(torch.isfinite(values).all()):
            raise ValueError("the Laplacian must be finite")
        skew = (self.matrix - self.matrix.transpose(0, 1)).to_dense() if not sparse else _skew(self.matrix)
        if skew.numel() and float(skew.abs().amax()) > 1e-8 * float(values.abs().amax()):
            raise ValueError("the Laplacian must be symmetric")
        self.shape: tuple[int, ...] = (matrix.shape[0],)
        self.factors = solver == "cholesky" or (solver == "auto" and not sparse)
        if self.factors:
            self._check_dense()

    def _check_dense(self) -> None:
        if self.shape[0] > LARGEST_DENSE:
            raise ValueError(
                f'{self.shape[0]:,} nodes are too many to factor, which takes up to {LARGEST_DENSE:,}: solver="cg", '
                "with a sparse Laplacian"
            )
        self.matrix = self.matrix.to_dense()
        # above what rounding makes of 0; in float32 that is more
        slack = 1e-8 if self.matrix.dtype == torch.float64 else 1e-5 * float(self.matrix.diagonal().amax())
        eye = torch.eye(self.shape[0], dtype=self.matrix.dtype, device=self.matrix.device)
        if int(torch.linalg.cholesky_ex(self.matrix + slack * eye).info):
            raise ValueError("the Laplacian must have no negative eigenvalue")

    def apply(self, u: Tensor) -> Tensor:
        """``L u``."""
        product: Tensor = self.matrix @ u.reshape(len(u), -1)
        return product.view(u.shape)

    def solver(self, diagonal: Tensor | float, scale: float) -> Solve:
        """What solves ``(diagonal + scale * L) x = b``."""
        d = torch.as_tensor(diagonal, dtype=self.matrix.dtype, device=self.matrix.device).expand(self.shape)
        if not self.factors:
            return lambda b: conjugate_gradients(
                lambda x: d.view(-1, *[1] * (x.ndim - 1)) * x + scale * self.apply(x), b
            )
        factor = torch.linalg.cholesky(torch.diag(d) + scale * self.matrix)
        return lambda b: torch.cholesky_solve(b.reshape(len(b), -1), factor).view(b.shape)


def _skew(matrix: Tensor) -> Tensor:
    difference = (matrix - matrix.t()).coalesce()
    return difference.values()


def conjugate_gradients(apply: Solve, b: Tensor, steps: int = 1_000) -> Tensor:
    """Solve ``apply(x) = b`` for a symmetric positive definite operator, each column of b by itself, up to rounding.

    Raises:
        ValueError: the operator is not positive definite.
    """
    x, r = torch.zeros_like(b), b.clone()
    p, rr = r.clone(), r.square().sum(0)
    enough = (16 * torch.finfo(b.dtype).eps) ** 2 * rr
    for _ in range(steps):
        if bool((rr <= enough).all()):
            break
        q = apply(p)
        curvature = (p * q).sum(0)
        if bool((curvature < 0).any()):
            raise ValueError("the Laplacian must have no negative eigenvalue")
        alive = rr > enough
        a = torch.where(alive, rr / torch.where(alive, curvature, 1.0), 0.0)
        x, r = x + a * p, r - a * q
        new = r.square().sum(0)
        p = r + torch.where(alive, new / torch.where(alive, rr, 1.0), 0.0) * p
        rr = new
    return x


def knn_laplacian(points: Tensor, neighbors: int = 10, sparse: bool = False) -> Tensor:
    """The normalized Laplacian of a graph of nearest neighbours, ``I - D^-1/2 W D^-1/2``.

    ``W_ij = exp(-|x_i - x_j|^2 / (s_i s_j))`` where one is among the other's nearest, s the distance to the last of
    them. A node without weights keeps the row of the identity.

    Args:
        points: (n, d), finite.
        neighbors: of each point, 1 to n - 1.
        sparse: make a sparse matrix, for graphs beyond 5,000 nodes.

    Raises:
        ValueError: points that are no finite matrix, neighbors out of range.
    """
    if points.ndim != 2 or not points.is_floating_point() or not bool(torch.isfinite(points).all()):
        raise ValueError(f"points must be a finite floating matrix (n, d), got {points.dtype} {tuple(points.shape)}")
    n = len(points)
    if not 1 <= neighbors < n:
        raise ValueError(f"neighbors must be in 1..{n - 1}, got {neighbors!r}")
    near, distances, reach = nearest(points, points, neighbors + 1)
    near, distances = near[:, 1:], distances[:, 1:]
    rows = torch.arange(n, device=points.device).repeat_interleave(neighbors)
    columns = near.reshape(-1)
    weights = kernel(distances, reach[:, None], reach[near]).reshape(-1)
    # an edge found from both ends has equal weights: the larger of W and its transpose is their mean there
    both = torch.cat([torch.stack([rows, columns]), torch.stack([columns, rows])], dim=1)
    sums = torch.sparse_coo_tensor(both, weights.repeat(2), (n, n), check_invariants=True).coalesce()
    counts = torch.sparse_coo_tensor(both, torch.ones_like(weights).repeat(2), (n, n), check_invariants=True).coalesce()
    (i, j), w = sums.indices(), sums.values() / counts.values()
    degree = torch.zeros(n, dtype=w.dtype, device=w.device).index_add_(0, i, w)
    scale = torch.where(degree > 0, degree, 1.0).rsqrt()
    nodes = torch.arange(n, device=w.device)
    indices = torch.cat([torch.stack([i, j]), torch.stack([nodes, nodes])], dim=1)
    entries = torch.cat([-(scale[i] * scale[j]) * w, torch.ones_like(degree)])
    found = torch.sparse_coo_tensor(indices, entries, (n, n), check_invariants=True).coalesce()
    return found if sparse else found.to_dense()


def nearest(queries: Tensor, points: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices and distances (n, count) of the nearest points, the nearest first, and the distance of the last (n).

    A query that is one of the points finds itself first, among its copies too.
    """
    near, distances = [], []
    for start in range(0, len(queries), 1024):
        block = torch.cdist(queries[start : start + 1024], points, compute_mode="donot_use_mm_for_euclid_dist")
        if queries is points:
            block[torch.arange(len(block)), start + torch.arange(len(block))] = -1.0
        found = block.topk(count, largest=False)
        near.append(found.indices)
        distances.append(found.values.clamp(min=0.0))
    d = torch.cat(distances)
    return torch.cat(near), d, d[:, -1]


def kernel(distances: Tensor, reach: Tensor, other: Tensor) -> Tensor:
    """``exp(-d^2 / (s_i s_j))``; 1 between copies of one point."""
    scale = reach * other
    return torch.exp(-torch.where(distances > 0, distances.square() / torch.where(scale > 0, scale, 1.0), 0.0))
