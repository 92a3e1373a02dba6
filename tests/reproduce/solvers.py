"""Solvers: DBF-Newton's filter and runs, GL-FISTA on a graph."""

from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from polyak.optim.solvers import GLFISTA, Belief, DBFNewton, filter_step
from tests.reproduce.vector import Unknown, Vector, array


def dbf_newton(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """The filter alone, or least squares on the recorded batches."""
    if vector.variant == "filter only":
        return _filtered(vector, device)
    if vector.variant != "linear regression run":
        raise Unknown(f"nothing recomputes the variant {vector.variant!r} of dbf-newton")
    vector.read_all("alpha", "armijo_c", "armijo_steps", "batch_size", "beta", "ridge")
    filtered, lengths = _regression(vector, device, keeps_belief=True)
    newton, _ = _regression(vector, device, keeps_belief=False)
    return {"theta_filtered": array(filtered), "theta_newton": array(newton), "step_length": array(lengths)}


def _filtered(vector: Vector, device: str) -> dict[str, np.ndarray]:
    vector.read_all("alpha", "beta", "ridge")
    belief: Belief | None = None
    found: dict[str, list[Tensor]] = {"m": [], "Sigma": [], "step": []}
    for f, q in zip(vector.input("f", device), vector.input("Q", device), strict=True):
        belief = filter_step(belief, f, q, vector.option("alpha", 0.9), vector.option("beta", 0.2))
        direction = belief.direction(vector.option("ridge", 1e-12))
        for name, value in zip(found, (belief.mean, belief.covariance, direction), strict=True):
            found[name].append(value)
    return {name: array(torch.stack(values)) for name, values in found.items()}


def _regression(vector: Vector, device: str, keeps_belief: bool) -> tuple[Tensor, list[float]]:
    """The points from the start on, and step lengths; a solver that forgets at once is unfiltered Newton."""
    x, y, theta = vector.input("X", device), vector.input("Y", device), Parameter(vector.input("theta0", device))
    names = {
        "alpha": "alpha",
        "beta": "beta",
        "ridge": "ridge",
        "armijo_c": "armijo_c",
        "armijo_steps": "max_backtracks",
    }
    options = {ours: vector.option(theirs) for theirs, ours in names.items() if theirs in vector.hyperparameters}
    optimizer = DBFNewton([theta], **options)
    went, lengths = [theta.detach().clone()], []
    for rows in vector.input("idx", device):
        if not keeps_belief:
            optimizer = DBFNewton([theta], **options)
        optimizer.step(lambda rows=rows: 0.5 * (y[rows] - x[rows] @ theta).square().mean())
        went.append(theta.detach().clone())
        lengths.append(optimizer.diagnostics()["step_length"])
    return torch.stack(went), lengths


def gl_fista(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """The iterates and their energies, the start first."""
    if vector.variant != "graph":
        raise Unknown(f"nothing recomputes the variant {vector.variant!r} of gl-fista")
    vector.read_all("epsilon", "fidelity", "momentum", "potential", "restart", "split", "steps", "tau")
    solver = GLFISTA(**vector.hyperparameters)
    energy = solver.energy(*(vector.input(name, device) for name in ("laplacian", "labelled", "labels")))
    went = list(islice(solver.iterate(energy, vector.input("u0", device)), solver.steps + 1))
    return {"u": array(torch.stack([i.u for i in went])), "energy": array(torch.stack([i.energy for i in went]))}


RULES = {"dbf-newton": dbf_newton, "gl-fista": gl_fista}
