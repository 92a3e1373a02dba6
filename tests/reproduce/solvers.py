"""Solvers: DBF-Newton's filter and runs, GL-FISTA on a graph, and optimisers and learners made of lenses."""

from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from polyak.optim import lenses
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


def lens(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """Parameters in nested pairs under recorded gradients, or a perceptron that learns one example a step."""
    if vector.variant == "supervised learner":
        return _learned(vector, device)
    lr, gamma = vector.option("lr"), vector.hyperparameters.get("momentum", 0.0)
    known = {  # the lens, and what becomes of the gradient before it comes in
        "gd": (lenses.gradient_descent(lr), 1.0),
        "momentum": (lenses.momentum(lr, gamma), 1.0),
        "rda": (lenses.ascent(), -lr),
        "rda_momentum": (lenses.ascent_momentum(gamma), -lr),
    }
    if vector.variant not in known:
        raise Unknown(f"nothing recomputes the variant {vector.variant!r} of lens")
    vector.read_all("lr", *(["momentum"] if "momentum" in vector.variant else []))
    optimiser, scale = known[vector.variant]
    wire = optimiser.start(_nested([vector.input(f"p0/{name}", device) for name in vector.tensors]))
    gradients = {name: vector.input(f"g/{name}", device) for name in vector.tensors}
    went = []
    for t in range(vector.length):
        wire = optimiser.lens.put(wire, _nested([scale * gradients[name][t] for name in vector.tensors]))
        went.append(list(_flat(optimiser.lens.get(wire))))
    return {f"p/{n}": array(torch.stack(s)) for n, s in zip(vector.tensors, zip(*went, strict=True), strict=True)}


def _nested(values: list[Tensor]) -> lenses.Tree:
    return values[0] if len(values) == 1 else (values[0], _nested(values[1:]))


def _flat(tree: lenses.Tree) -> list[Tensor]:
    return [tree] if isinstance(tree, Tensor) else [tree[0], *_flat(tree[1])]


def _learned(vector: Vector, device: str) -> dict[str, np.ndarray]:
    """Sigmoid layers of the recorded sizes; the last layer's parameters come first."""
    vector.read_all("lr", "momentum")
    depth = len([key for key in vector.inputs if key.startswith("W") and key.endswith("_0")])
    start = [(None, (vector.input(f"b{i}_0", device), vector.input(f"W{i}_0", device))) for i in range(1, depth + 1)]
    model, parameter = lenses.dense(), start[0]
    for one in start[1:]:
        model, parameter = model >> lenses.dense(), (one, parameter)
    learner = lenses.Learner(
        model, lenses.ascent_momentum(vector.option("momentum")), lenses.squared_error(),
        lenses.learning_rate(vector.option("lr")),
    )  # fmt: skip
    wire = learner.start(parameter)
    found: dict[str, list[Tensor]] = {"output": []}
    for x, y in zip(vector.input("X", device), vector.input("Y", device), strict=True):
        found["output"].append(learner.predict(wire, x))
        wire = learner.step(y, wire, x)
        rest = wire[1]
        for i in range(depth, 0, -1):
            (_, (b, w)), rest = rest if i > 1 else (rest, None)
            found.setdefault(f"W{i}", []).append(w)
            found.setdefault(f"b{i}", []).append(b)
    return {name: array(torch.stack(values)) for name, values in found.items()}


RULES = {"dbf-newton": dbf_newton, "gl-fista": gl_fista, "lens": lens}
