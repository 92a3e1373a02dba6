"""Problems of other shapes than one loss: several tasks, two levels."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyak.memory import cagrad_weights
from polyak.optim.solvers import SAMGS, BORep, CAGrad, PCGrad
from tests.reproduce.vector import Unknown, Vector, array

MODES = {"mean": "mean", "any": "any", "default": "mean"}


def cases(vector: Vector, device: str) -> Iterator[tuple[str, Tensor]]:
    """The gradients of each case."""
    for i in vector.steps(r"case(\d+)/in/grads"):
        yield f"case{i}", vector.input(f"case{i}/in/grads", device)


def samgs(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """The gradient before it is multiplied and clipped, and both memories, after each step."""
    vector.read_all("beta1", "beta2", "gamma")
    mode = next((mode for word, mode in MODES.items() if vector.variant.startswith(word)), None)
    if mode is None:
        raise Unknown(f"nothing recomputes the variant {vector.variant!r} of {vector.rule!r}")
    betas = vector.option("beta1", SAMGS.betas[0]), vector.option("beta2", SAMGS.betas[1])
    found: dict[str, np.ndarray] = {}
    for case, steps in cases(vector, device):
        aggregator = SAMGS(
            vector.option("gamma", SAMGS.gamma), betas, mode=mode,
            multiply_by_tasks=False, max_norm=0.0,
        )  # fmt: skip
        went: dict[str, list[Tensor]] = {"g": [], "m": [], "v": []}
        for columns in steps:
            went["g"].append(aggregator(columns.T))
            state = aggregator.state_dict()
            went["m"].append(state["exp_avg"].T)
            went["v"].append(state["unlikeness"])
        found |= {f"{case}/out/{name}": array(torch.stack(values)) for name, values in went.items()}
    return found


def pcgrad(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """The sum of the gradients of two tasks without their conflict."""
    vector.read_all()
    found: dict[str, np.ndarray] = {}
    for case, gradients in cases(vector, device):
        if len(gradients) > 2:
            raise Unknown(f"{vector.name}: the order in which {len(gradients)} tasks were visited is not recorded")
        for reduction in ("sum", "mean"):
            found[f"{case}/out/pcgrad_{reduction}"] = array(PCGrad(reduction)(gradients))
    return found


def cagrad(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """The weights on the simplex, and the gradient under each rescaling."""
    vector.read_all("c")
    c = vector.option("c", CAGrad.c)
    found: dict[str, np.ndarray] = {}
    for case, gradients in cases(vector, device):
        found[f"{case}/out/w"] = array(cagrad_weights(gradients, c))
        for rescale in (0, 1, 2):
            found[f"{case}/out/g_rescale{rescale}"] = array(CAGrad(c, rescale=rescale)(gradients))
    return found


def bo_rep(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """The strength of a penalty on the norm of a linear classifier, tuned on other rows; it begins at 0, as there.

    The cross derivative is that of the penalized loss on the upper batch.
    """
    vector.read_all("beta", "inner_lr", "inner_steps", "interval", "nu", "outer_lr")
    strength = nn.Parameter(vector.input("in/z0", device).new_zeros(1))
    w, b = (nn.Parameter(vector.input(f"in/{name}0", device)) for name in "wb")
    h = {name: vector.option(name) for name in ("beta", "inner_steps", "interval", "nu")}
    rates = {"lr_outer": vector.option("outer_lr"), "lr_inner": vector.option("inner_lr")}
    solver = BORep([strength], [w, b], average=False, **rates, **h)
    start = vector.input("in/z0", device).flatten()
    for p, z in zip((w, b), start.split([w.numel(), b.numel()]), strict=True):
        solver.state[p]["z"] = z.view(p.shape).clone()
    went: dict[str, list[Tensor]] = {"lambda": [], "z": [], "w": [], "momentum": []}
    batches = zip(*(vector.input(f"in/{name}", device) for name in ("Xs", "Ys", "Xq", "Yq")), strict=True)
    for xs, ys, xq, yq in batches:

        def on(x: Tensor, y: Tensor, share: Tensor | float) -> Tensor:
            norm = (w.square().sum() + b.square().sum()).sqrt()
            return F.cross_entropy(x @ w.T + b, y) + (share / 2 * norm).sum()

        solver.step(lambda: on(xq, yq, 0.0), lambda: on(xs, ys, strength), lambda: on(xq, yq, strength))  # noqa: B023
        z = torch.cat([solver.state[p]["z"].flatten() for p in (w, b)])
        now = {"lambda": strength[0], "z": z[:, None], "w": w, "momentum": solver.state[strength]["exp_avg"][0]}
        for name, value in now.items():
            went[name].append(value.detach().clone())
    return {f"out/{name}": array(torch.stack(values)) for name, values in went.items()}


RULES = {"bo-rep": bo_rep, "samgs": samgs, "pcgrad": pcgrad, "cagrad": cagrad}
