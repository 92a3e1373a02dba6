"""Optimizers: trajectories of weights under recorded gradients, in every execution mode."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import Parameter

from polyak.testing import RULES as KNOWN
from polyak.testing import from_manifest
from tests.reproduce.vector import Unknown, Vector, array

Start = Callable[[Vector, torch.Tensor], dict[str, torch.Tensor]]


def trajectory(
    vector: Vector, execution: str = "eager", device: str = "cpu", start: Start | None = None
) -> dict[str, np.ndarray]:
    """The weights after each step; ``start`` gives memories that do not start at a number."""
    params = {name: Parameter(vector.input(f"p0/{name}", device)) for name in vector.tensors}
    gradients = {name: _gradients(vector, name, device) for name in vector.tensors}
    try:
        optimizer = from_manifest(_without_masks(vector), params, execution=execution)
    except KeyError as error:
        raise Unknown(error.args[0]) from error
    losses = vector.input("loss", device) if vector.manifest.get("losses_used") else [None] * vector.length
    if start is not None:
        optimizer.state.update({p: start(vector, p) for p in params.values()})
    went: dict[str, list[torch.Tensor]] = {name: [] for name in params}
    for t in range(vector.length):
        for name, p in params.items():
            p.grad = gradients[name][t].clone()
        optimizer.step(loss=losses[t])
        for name, p in params.items():
            went[name].append(p.detach().clone())
    return {f"p/{name}": array(torch.stack(steps)) for name, steps in went.items()}


def _gradients(vector: Vector, name: str, device: str) -> torch.Tensor:
    """The gradients of a tensor; of recorded masks, where those of the source were drawn, what they let through."""
    g = vector.input(f"g/{name}", device)
    key = f"mask/{name}"
    return g[: vector.length] * vector.input(key, device)[: vector.length] if key in vector.inputs else g


def _without_masks(vector: Vector) -> dict[str, Any]:
    """The manifest; where masks are recorded, without the share of entries for which others would be drawn."""
    if not any(key.startswith("mask/") for key in vector.inputs):
        return vector.manifest
    left = {name: value for name, value in vector.manifest["hyperparameters"].items() if name != "density"}
    return {**vector.manifest, "hyperparameters": left}


DRAW = r"(numpy default_rng\(seed\)\.standard_normal\(\(hidden,c\)\)/sqrt\(c\), fresh generator per tensor)"


def deep(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """As :func:`trajectory`, with the recorded draw of the memory's first layer."""
    vector.said(DRAW, "notes")

    def start(vector: Vector, p: torch.Tensor) -> dict[str, torch.Tensor]:
        columns = p.numel() // p.shape[0]
        drawn = np.random.default_rng(vector.option("seed")).standard_normal((vector.option("hidden"), columns))
        return {"inner": torch.tensor(drawn / columns**0.5, dtype=vector.dtype, device=device)}

    return trajectory(vector, execution, device, start)


RULES: dict[str, Callable[..., dict[str, np.ndarray]]] = dict.fromkeys(KNOWN, trajectory)
RULES["nl-deep"] = deep
