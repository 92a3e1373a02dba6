"""Optimizers: trajectories of weights under recorded gradients, in every execution mode."""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import Parameter

from polyak.testing import from_manifest
from tests.reproduce.vector import Unknown, Vector, array

Start = Callable[[Vector, torch.Tensor], dict[str, torch.Tensor]]


def trajectory(
    vector: Vector, execution: str = "eager", device: str = "cpu", start: Start | None = None
) -> dict[str, np.ndarray]:
    """The weights after each step; ``start`` gives memories that do not start at a number."""
    params = {name: Parameter(vector.input(f"p0/{name}", device)) for name in vector.tensors}
    gradients = {name: vector.input(f"g/{name}", device) for name in vector.tensors}
    try:
        optimizer = from_manifest(vector.manifest, params, execution=execution)
    except KeyError as error:
        raise Unknown(error.args[0]) from error
    if start is not None:
        optimizer.state.update({p: start(vector, p) for p in params.values()})
    went: dict[str, list[torch.Tensor]] = {name: [] for name in params}
    for t in range(vector.length):
        for name, p in params.items():
            p.grad = gradients[name][t].clone()
        optimizer.step()
        for name, p in params.items():
            went[name].append(p.detach().clone())
    return {f"p/{name}": array(torch.stack(steps)) for name, steps in went.items()}


DRAW = r"(numpy default_rng\(seed\)\.standard_normal\(\(hidden,c\)\)/sqrt\(c\), fresh generator per tensor)"


def deep(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """As :func:`trajectory`, with the recorded draw of the memory's first layer."""
    vector.said(DRAW, "notes")

    def start(vector: Vector, p: torch.Tensor) -> dict[str, torch.Tensor]:
        columns = p.numel() // p.shape[0]
        drawn = np.random.default_rng(vector.option("seed")).standard_normal((vector.option("hidden"), columns))
        return {"inner": torch.tensor(drawn / columns**0.5, dtype=vector.dtype, device=device)}

    return trajectory(vector, execution, device, start)


RULES: dict[str, Callable[..., dict[str, np.ndarray]]] = dict.fromkeys(
    (
        "sgd", "adam", "adamw", "adan", "lion", "adabelief", "ademamix", "adamp", "sgdp", "cadamw", "clion", "cautious",
        "grams", "tam", "adatam", "adatamw", "muon", "reality-check", "ano", "lionk", "alphaadam",
        "lars", "lamb", "sgd-sai", "scale", "m3", "nl-delta",
    ),
    trajectory,
)  # fmt: skip
RULES["nl-deep"] = deep
