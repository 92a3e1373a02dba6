"""GL-FISTA: the Ginzburg-Landau energy, on grids and graphs, minimized with momentum."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import KW_ONLY
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from polyak.declare import HALF_OPEN_UNIT, NON_NEGATIVE, POSITIVE, Declared, Interval, Paper
from polyak.optim.solvers.laplacians import Graph, Grid, Laplacian, Solver

Potential = Literal["truncated", "quartic"]


def well(u: Tensor, potential: Potential = "truncated") -> Tensor:
    """The double well W: ``(1 - u^2)^2 / 4``, and of ``"truncated"`` beyond -1 and 1 ``(|u| - 1)^2``."""
    inside = (1 - u.square()).square() / 4
    return inside if potential == "quartic" else torch.where(u.abs() <= 1, inside, (u.abs() - 1).square())


def well_slope(u: Tensor, potential: Potential = "truncated") -> Tensor:
    """Its derivative: ``u^3 - u``, beyond -1 and 1 ``2 (u - sign u)``."""
    inside = u.pow(3) - u
    return inside if potential == "quartic" else torch.where(u.abs() <= 1, inside, 2 * (u - u.sign()))


class Energy:
    """``E(u) = eps/2 <u, L u> + sum W(u)/eps + fidelity/2 sum over labelled nodes (u - label)^2``, times the volume.

    Args:
        laplacian: L: of a graph, or a grid.
        epsilon: width of an interface, above 0.
        potential: the double well.
        fidelity: weight of the labels, at least 0.
        labelled: indices of labelled nodes.
        labels: what they are drawn to: (m), or (m, K) for K fields.

    Raises:
        ValueError: indices out of range or twice, labels of another number or other than -1 and 1; labels on a grid.
    """

    def __init__(
        self, laplacian: Laplacian, epsilon: float, potential: Potential = "truncated", fidelity: float = 0.0,
        labelled: Tensor | None = None, labels: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.laplacian, self.epsilon, self.potential, self.fidelity = laplacian, epsilon, potential, fidelity
        self.labelled, self.labels = _checked_labels(laplacian, labelled, labels)

    def start(self, like: Tensor) -> Tensor:
        """The labels where they are, 0 elsewhere."""
        if self.labels is None or self.labelled is None:
            raise ValueError("without labels a start must be given: 0 is a stationary point")
        u = like.new_zeros(*self.laplacian.shape, *self.labels.shape[1:])
        u[self.labelled] = self.labels.to(u)
        return u

    def __call__(self, u: Tensor) -> Tensor:
        """The energy, a 0-d tensor."""
        found = self.epsilon / 2 * (u * self.laplacian.apply(u)).sum() + well(u, self.potential).sum() / self.epsilon
        if self.labelled is not None and self.labels is not None:
            found = found + self.fidelity / 2 * (u[self.labelled] - self.labels.to(u)).square().sum()
        return self.laplacian.volume * found

    def gradient(self, u: Tensor) -> Tensor:
        """The derivative of the energy, divided by the volume."""
        found = self.epsilon * self.laplacian.apply(u) + well_slope(u, self.potential) / self.epsilon
        return found + self.pull(u)

    def pull(self, u: Tensor) -> Tensor:
        """The labels' part of the derivative."""
        found = torch.zeros_like(u)
        if self.labelled is not None and self.labels is not None:
            found[self.labelled] = self.fidelity * (u[self.labelled] - self.labels.to(u))
        return found

    def fidelity_diagonal(self, like: Tensor) -> Tensor | float:
        """The diagonal of the labels' part of the second derivative; 0 without labels."""
        if self.labelled is None or self.fidelity == 0:
            return 0.0
        found = like.new_zeros(self.laplacian.shape)
        found[self.labelled] = self.fidelity
        return found


def _checked_labels(
    laplacian: Laplacian, labelled: Tensor | None, labels: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    if (labelled is None) != (labels is None):
        raise ValueError("labelled nodes and their labels come together")
    if labelled is None or labels is None or len(labelled) == 0:
        return None, None
    if isinstance(laplacian, Grid):
        raise ValueError("labelled points need a graph; a grid has none")
    n = laplacian.shape[0]
    if labelled.ndim != 1 or labelled.is_floating_point() or labelled.dtype == torch.bool:
        raise ValueError(f"labelled must be a vector of indices, got {labelled.dtype} {tuple(labelled.shape)}")
    if int(labelled.amin()) < 0 or int(labelled.amax()) >= n:
        raise ValueError(f"labelled must be in 0..{n - 1}, got {int(labelled.amin())}..{int(labelled.amax())}")
    if len(labelled.unique()) != len(labelled):
        raise ValueError("labelled holds a node twice")
    if labels.ndim not in (1, 2) or len(labels) != len(labelled):
        raise ValueError(f"labels must be {len(labelled)}, one a labelled node, got shape {tuple(labels.shape)}")
    if not bool((labels.abs() == 1).all()):
        raise ValueError("labels must be -1 or 1")
    return labelled, labels


class Iterate(NamedTuple):
    """Where an iteration is: the field, the one before it, how many steps were made, and the energy."""

    u: Tensor
    previous: Tensor
    step: int
    energy: Tensor


class Minimum(NamedTuple):
    """What a minimization found: the last iterate, the energy from the start on, and whether it stopped by itself."""

    last: Iterate
    energies: list[float]
    converged: bool

    @property
    def u(self) -> Tensor:
        """The field."""
        return self.last.u


class GLFISTA(Declared):
    """Minimization of the Ginzburg-Landau energy with momentum (Akande et al., arXiv:2501.00389), an interpretation.

    ::

        E(u) = eps/2 <u, L u> + sum W(u) / eps + fidelity/2 sum over labelled nodes (u - label)^2
        y <- u + rho (u - u_previous)      (rho = momentum, or k / (k + 3) in step k = 0, 1, ...)
        u <- y - B^-1 E'(y),  B = (1/tau + split/eps) I + eps L + fidelity D      (D = diagonal of the labelled nodes)

    The convex part of the energy is implicit, the concave explicit: one linear system a step, whose matrix is factored
    once. Without momentum the energy never rises if ``split`` is at least the largest ``W''``, 2 for the truncated
    well. The step is at most ``eps / split`` however large ``tau`` is: momentum makes up for it. With ``restart`` a
    step that would raise the energy is made again without momentum.

    ``minimize(laplacian, labelled, labels)`` wants a graph's Laplacian (a symmetric matrix, dense or sparse, see
    :func:`knn_laplacian`) with labels -1 and 1, or a :class:`Grid` and a start. Labels (m, K) make K fields, one
    against the rest. A graph's labels spread best with ``epsilon`` about 1, a grid wants a few spacings.

    Of the paper no code and only the abstract was at hand: energy and splitting are its companion's (arXiv:2506.18869),
    the momentum's schedule is FISTA's.
    """

    slug = "gl_fista"
    paper = Paper(
        "Momentum-based minimization of the Ginzburg-Landau functional on Euclidean spaces and graphs", 2024,
        "2501.00389",
    )  # fmt: skip
    vectors = ["gl-fista-card"]

    _: KW_ONLY
    epsilon: Annotated[float, POSITIVE, "width of an interface"] = 1.0
    tau: Annotated[float, POSITIVE, "time step"] = 10.0
    split: Annotated[float, NON_NEGATIVE, "curvature that is implicit; below 2 the energy may rise"] = 2.0
    fidelity: Annotated[float, NON_NEGATIVE, "weight of the labels"] = 10.0
    momentum: Annotated[float | None, HALF_OPEN_UNIT, "retention of the velocity; None: k / (k + 3)"] = None
    potential: Annotated[Potential, "the double well, with growth of degree 2 or 4"] = "truncated"
    restart: Annotated[bool, "make a step again without momentum if it raises the energy"] = True
    steps: Annotated[int, Interval(0, 10**9), "most steps"] = 300
    tol: Annotated[float, NON_NEGATIVE, "relative change of the field at which it stops"] = 1e-6
    solver: Annotated[Solver, "factor a graph's matrix, or take conjugate gradients; auto: factor a dense one"] = "auto"

    def _begin(self, values: dict[str, Any]) -> None:
        super()._begin(values)
        if self.split < 2:
            message = f"{type(self).__name__}: with split = {self.split} below 2 the energy may rise"
            warnings.warn(message, UserWarning, stacklevel=4)

    def energy(
        self, laplacian: Tensor | Laplacian, labelled: Tensor | None = None, labels: Tensor | None = None
    ) -> Energy:
        """The energy that is minimized; warns of a graph without labels, whose minimum is constant."""
        operator = Graph(laplacian, self.solver) if isinstance(laplacian, Tensor) else laplacian
        found = Energy(operator, self.epsilon, self.potential, self.fidelity, labelled, labels)
        if not isinstance(operator, Grid) and self.fidelity > 0 and found.labelled is None:
            message = f"{type(self).__name__}: no node is labelled, so the minimum is constant"
            warnings.warn(message, UserWarning, stacklevel=3)
        return found

    def iterate(self, energy: Energy, start: Tensor | Iterate) -> Iterator[Iterate]:
        """The iterates, the start first, without end; a start that is an iterate is gone on from.

        Raises:
            ValueError: a start of another shape, or not finite.
        """
        now = start if isinstance(start, Iterate) else Iterate(start, start, 0, energy(_fits(energy, start)))
        eps, tau = self.epsilon, self.tau
        solve = energy.laplacian.solver(1 / tau + self.split / eps + energy.fidelity_diagonal(now.u), eps)
        while True:
            yield now
            rho = now.step / (now.step + 3) if self.momentum is None else self.momentum
            y = now.u + rho * (now.u - now.previous)
            u = y - solve(energy.gradient(y))
            previous, height = now.u, energy(u)
            if self.restart and bool(height > now.energy):
                u = now.u - solve(energy.gradient(now.u))
                previous, height = u, energy(u)
            now = Iterate(u, previous, now.step + 1, height)

    def minimize(
        self, laplacian: Tensor | Laplacian, labelled: Tensor | None = None, labels: Tensor | None = None,
        start: Tensor | Iterate | None = None,
    ) -> Minimum:  # fmt: skip
        """Iterate until the field changes by less than ``tol``, relative to itself, or ``steps`` are made.

        Args:
            laplacian: a graph's, (n, n), dense or sparse; or a :class:`Grid`.
            labelled: indices of labelled nodes.
            labels: -1 or 1 for each of them: (m), or (m, K).
            start: the first field, or an iterate to go on from; None: the labels, 0 elsewhere.

        Raises:
            ValueError: a Laplacian, labels or a start that do not fit; says why.
        """
        energy = self.energy(laplacian, labelled, labels)
        if start is None:
            like = laplacian if isinstance(laplacian, Tensor) else torch.zeros(())
            start = energy.start(torch.zeros((), dtype=like.dtype, device=like.device))
        energies: list[float] = []
        last: Iterate | None = None
        for now in self.iterate(energy, start):
            energies.append(float(now.energy))
            moved = last is None or bool((now.u - last.u).norm() >= self.tol * last.u.norm())
            if not moved or len(energies) > self.steps:
                return Minimum(now, energies, not moved)
            last = now
        raise AssertionError("the iterates have no end")


def _fits(energy: Energy, start: Tensor) -> Tensor:
    shape = energy.laplacian.shape
    if tuple(start.shape[: len(shape)]) != shape or start.ndim > len(shape) + 1:
        raise ValueError(f"start must have the shape {shape}, got {tuple(start.shape)}")
    if energy.labels is not None and start.shape[1:] != energy.labels.shape[1:]:
        raise ValueError(f"start must be one field a column of labels, got shapes {tuple(start.shape)} and "
                         f"{tuple(energy.labels.shape)}")  # fmt: skip
    if not start.is_floating_point() or not bool(torch.isfinite(start).all()):
        raise ValueError("start must be floating and finite")
    return start
