"""Optimizers: trajectories of weights under recorded gradients, in every execution mode."""

from typing import Any

import numpy as np
import torch
from torch.nn import Parameter

from polyak.testing import from_manifest
from tests.reproduce.vector import Unknown, Vector, array


def trajectory(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """The weights after each step."""
    params = {name: Parameter(vector.input(f"p0/{name}", device)) for name in vector.tensors}
    gradients = {name: _gradients(vector, name, device) for name in vector.tensors}
    try:
        optimizer = from_manifest(_without_masks(vector), params, execution=execution)
    except KeyError as error:
        raise Unknown(error.args[0]) from error
    went: dict[str, list[torch.Tensor]] = {name: [] for name in params}
    for t in range(vector.length):
        for name, p in params.items():
            p.grad = gradients[name][t].clone()
        optimizer.step()
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


RULES = dict.fromkeys(
    (
        "sgd", "adam", "adamw", "adan", "lion", "adabelief", "ademamix", "adamp", "sgdp", "cadamw", "clion", "cautious",
        "grams", "tam", "adatam", "adatamw", "muon", "reality-check", "ano", "lionk", "alphaadam",
        "lars", "lamb", "sgd-sai", "scale", "spam", "stable-spam", "smmf", "random-scaling",
        "adaptive-braking",
    ),
    trajectory,
)  # fmt: skip
