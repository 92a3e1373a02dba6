"""Drivers: trajectories of what wraps a whole step of an optimizer."""

from typing import Any

import numpy as np
import torch
from torch.nn import Parameter

from polyak import optim
from polyak.optim.drivers import CMS, DGD, XGrad
from tests.reproduce.vector import Unknown, Vector, array

PULL = r"grads\[t\] \+ ([\d.]+) \* q"
"""What a prediction adds to the recorded gradient, in the manifest's words."""


def xgrad(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """The weights after each step, and the predicted ones at which its gradient was taken."""
    h = dict(vector.hyperparameters)
    base = {"sgdm": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW}.get(vector.variant)
    if base is None:
        raise Unknown(f"nothing predicts the base {vector.variant!r}")
    (pull,) = vector.said(PULL, "notes")
    params = {name: Parameter(vector.input(f"p0/{name}", device)) for name in vector.tensors}
    ahead = XGrad(base(params.items(), execution=execution, **_without(h, "steps_ahead")), h["steps_ahead"])
    return _run(vector, params, ahead, float(pull), device)


def _run(vector: Vector, params: dict[str, Parameter], ahead: XGrad, pull: float, device: str) -> dict[str, np.ndarray]:
    gradients = {name: vector.input(f"g/{name}", device) for name in vector.tensors}
    went: dict[str, list[torch.Tensor]] = {f"{kind}/{name}": [] for kind in "pq" for name in params}
    for t in range(vector.length):
        with ahead.predicted():
            for name, p in params.items():
                went[f"q/{name}"].append(p.detach().clone())
                p.grad = gradients[name][t] + pull * p.detach()
        ahead.step()
        for name, p in params.items():
            went[f"p/{name}"].append(p.detach().clone())
    return {key: array(torch.stack(steps)) for key, steps in went.items()}


def cms(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """The weights after each step, every tensor a level of its own."""
    vector.read_all("flush", "lr", "periods", "reduction")
    params = {name: Parameter(vector.input(f"p0/{name}", device)) for name in vector.tensors}
    gradients = {name: vector.input(f"g/{name}", device) for name in vector.tensors}
    groups = [{"params": [p], "period": vector.option("periods")[name]} for name, p in params.items()]
    levels = CMS(optim.SGD(groups, lr=vector.option("lr"), execution=execution), reduction=vector.option("reduction"))
    went: dict[str, list[torch.Tensor]] = {f"p/{name}": [] for name in params}
    for t in range(vector.length):
        for name, p in params.items():
            p.grad = gradients[name][t].clone()
        levels.step()
        if t == vector.length - 1 and vector.option("flush"):
            levels.flush()
        for name, p in params.items():
            went[f"p/{name}"].append(p.detach().clone())
    return {key: array(torch.stack(steps)) for key, steps in went.items()}


def dgd(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """The weights of a linear layer after each step, from recorded inputs and output gradients."""
    vector.read_all("lr", "mode", "normalize_inputs", "penalty")
    given = {key: vector.given(key, device) for key in ("x", "dy", "W0")}
    layer = torch.nn.Linear(*reversed(given["W0"].shape), bias=False, dtype=vector.dtype, device=device)
    layer.weight.data.copy_(given["W0"])
    optimizer = DGD(
        layer, lr=vector.option("lr"), penalty=vector.option("penalty"), order=vector.option("mode"),
        normalize=vector.option("normalize_inputs"), execution=execution,
    )  # fmt: skip
    went = []
    for x, slopes in zip(given["x"], given["dy"], strict=True):
        optimizer.zero_grad()
        ((layer(x) * slopes).sum() / len(x)).backward()
        optimizer.step()
        went.append(layer.weight.detach().clone())
    return {key: array(value) for key, value in given.items()} | {"W": array(torch.stack(went))}


def _without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items() if k not in names}


RULES = {"xgrad": xgrad, "nl-cms": cms, "nl-dgd": dgd}
