"""Stochastic Lanczos quadrature: the spectrum of a symmetric matrix from a few products with vectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from polyak.declare import Interval, whole

Product = Callable[[Tensor], Tensor]
Start = Literal["gaussian", "rademacher"]
INVARIANT = 1e-10
"""A remainder below this share of the largest diagonal entry spans nothing new."""


class Spectrum(NamedTuple):
    """A density of eigenvalues: ``nodes`` ascending, with ``weights`` that add up to 1; float64, on the CPU."""

    nodes: Tensor
    weights: Tensor


class Tridiagonal(NamedTuple):
    """What Lanczos makes of a matrix: the diagonal ``alpha`` and the off-diagonal ``beta``; float64, on the CPU."""

    alpha: Tensor
    beta: Tensor

    def ritz(self) -> Spectrum:
        """Its eigenvalues (Ritz values), and the squares of the first entries of its eigenvectors."""
        dense = torch.diag(self.alpha) + torch.diag(self.beta, 1) + torch.diag(self.beta, -1)
        nodes, vectors = torch.linalg.eigh(dense)
        return Spectrum(nodes, vectors[0].square())


@torch.no_grad()
def lanczos(product: Product, start: Tensor, steps: int) -> Tridiagonal:
    r"""Lanczos' tridiagonal matrix of a symmetric operator, with full re-orthogonalisation, twice.

    ::

        w = A v_j;  a_j = <v_j, w>;  w <- w - a_j v_j - b_{j-1} v_{j-1};  b_j = |w|;  v_{j+1} = w / b_j

    It ends early where ``b_j < 1e-10 max |a|``: the vectors then span a subspace that the operator does not leave.

    Args:
        product: the operator, from a vector to one like it.
        start: the first vector, of any length but 0; its dtype and device are those of all vectors.
        steps: products, 1 to the number of elements; beyond, the nearest of these with a warning.

    Raises:
        TypeError: if ``steps`` is no whole number or ``start`` not floating.
        ValueError: if ``start`` is no vector, zero or not finite.
        FloatingPointError: if a product is not finite.
    """
    steps = _steps(steps, start.numel())
    if not start.is_floating_point():
        raise TypeError(f"start must be floating, got {start.dtype}")
    if start.ndim != 1 or not start.isfinite().all() or not start.any():
        raise ValueError(f"start must be a finite vector other than 0, got shape {tuple(start.shape)}")
    basis = start.new_empty(steps, start.numel())
    basis[0] = start / start.norm()
    alpha: list[float] = []
    beta: list[float] = []
    for j in range(steps):
        w = product(basis[j])
        if not w.isfinite().all():
            raise FloatingPointError(f"product {j + 1} of {steps} is not finite")
        alpha.append(float(torch.dot(basis[j].double(), w.double())))
        for _ in range(2):  # which takes out the two terms of the recursion, and what rounding left of the others
            w = w - basis[: j + 1].T @ (basis[: j + 1] @ w)
        size = float(w.double().norm())
        if j + 1 == steps or size <= INVARIANT * max(map(abs, alpha)):
            break
        beta.append(size)
        basis[j + 1] = w / size
    return Tridiagonal(torch.tensor(alpha, dtype=torch.float64), torch.tensor(beta, dtype=torch.float64))


def spectrum(
    product: Product,
    size: int,
    steps: int = 20,
    probes: int = 1,
    start: Start = "gaussian",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Spectrum:
    """The density of an operator's eigenvalues: Ritz values and weights, averaged over random first vectors.

    The extreme ones converge in 10 to 20 steps.

    Args:
        product: the operator, such as a :class:`~polyak.optim.spectrum.BatchCurvature`.
        size: elements of a vector.
        steps: products for each first vector, see :func:`lanczos`.
        probes: number of first vectors, >= 1.
        start: ``"gaussian"`` or ``"rademacher"`` (signs).
        generator: of the first vectors, on the CPU; None: one of its own with seed 0, so torch's is not touched.
        dtype: of the vectors.
        device: of the vectors.

    Raises:
        TypeError: if ``probes`` or ``steps`` is no whole number.
        ValueError: if ``probes`` or ``size`` is below 1, or ``start`` is neither.
        FloatingPointError: if a product is not finite.
    """
    probes, size = whole("probes", probes, "spectrum"), whole("size", size, "spectrum")
    if start not in get_args(Start):
        raise ValueError(f"start must be one of {list(get_args(Start))}, got {start!r}")
    source = torch.Generator().manual_seed(0) if generator is None else generator
    found = []
    for _ in range(probes):
        v = torch.randn(size, generator=source, dtype=torch.float64)
        v = v if start == "gaussian" else torch.where(v < 0, -1.0, 1.0)
        found.append(lanczos(product, v.to(device, dtype), steps).ritz())
    nodes, order = torch.cat([s.nodes for s in found]).sort()
    return Spectrum(nodes, torch.cat([s.weights for s in found])[order] / probes)


def _steps(steps: int, size: int) -> int:
    steps = whole("steps", steps, "lanczos", Interval())
    nearest = max(1, min(steps, size))
    if nearest != steps:
        warnings.warn(f"steps must be in 1..{size}, got {steps}; {nearest} is taken", UserWarning, stacklevel=3)
    return nearest
