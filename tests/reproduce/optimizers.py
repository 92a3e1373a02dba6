"""Optimizers: trajectories of weights under recorded gradients, in every execution mode."""

import numpy as np
import torch
from torch.nn import Parameter

from polyak.testing import from_manifest
from tests.reproduce.vector import Unknown, Vector, array


def trajectory(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """The weights after each step."""
    params = {name: Parameter(vector.input(f"p0/{name}", device)) for name in vector.tensors}
    gradients = {name: vector.input(f"g/{name}", device) for name in vector.tensors}
    try:
        optimizer = from_manifest(vector.manifest, params, execution=execution)
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


RULES = dict.fromkeys(
    (
        "sgd", "adam", "adamw", "adan", "lion", "adabelief", "ademamix", "adamp", "sgdp", "cadamw", "clion", "cautious",
        "grams", "tam", "adatam", "adatamw", "muon", "reality-check", "ano", "lionk", "alphaadam",
        "lars", "lamb", "sgd-sai", "scale", "gsm",
    ),
    trajectory,
)  # fmt: skip
