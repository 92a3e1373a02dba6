"""Layer-wise second order: trajectories of a small network, with the factors of its layers."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from polyak.optim.layerwise import MKOR, LayerMethod
from tests.reproduce.vector import Unknown, Vector, array

Outputs = dict[str, np.ndarray]


def network(vector: Vector, device: str) -> nn.Sequential:
    """The network that the manifest describes, with the recorded start."""
    model = nn.Sequential(*map(_layer, vector.manifest["net"].split())).to(device, vector.dtype)
    model.load_state_dict({name: vector.input(f"p0/{name}", device) for name in model.state_dict()})
    return model


def _layer(word: str) -> nn.Module:
    found = re.fullmatch(r"(Linear|Conv2d|Tanh|Flatten)(?:\((.*)\))?", word)
    if found is None:
        raise Unknown(f"no layer {word!r} is known")
    words = [w for w in (found[2] or "").split(",") if w]
    keywords = {
        k: v == "True" if v in ("True", "False") else int(v) for k, v in (w.split("=") for w in words if "=" in w)
    }
    made: nn.Module = getattr(nn, found[1])(*(int(w) for w in words if "=" not in w), **keywords)
    return made


def trajectory(
    vector: Vector, device: str, make: Callable[[nn.Module], LayerMethod], factors: Callable[..., dict[str, Any]]
) -> Outputs:
    """Weights and factors after each step of a training with the recorded batches."""
    model = network(vector, device)
    optimizer = make(model)
    went: dict[str, list[np.ndarray]] = {}
    for x, y in zip(vector.input("X", device), vector.input("Y", device), strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        kept = {f"p/{name}": p for name, p in model.named_parameters()}
        for i, layer in enumerate(optimizer._layers):
            kept |= {f"s/{name}{i}": value for name, value in factors(optimizer, layer).items()}
        for name, value in kept.items():
            went.setdefault(name, []).append(array(value))
    return {name: np.stack(values) for name, values in went.items()}


def mkor(vector: Vector, execution: str = "eager", device: str = "cpu") -> Outputs:
    """MKOR with SGD as its base."""
    if "SGD" not in vector.variant:
        raise Unknown(f"{vector.name}: of the bases only SGD is reproduced")

    def make(model: nn.Module) -> MKOR:
        return MKOR(model, execution=execution, **vector.hyperparameters)

    def factors(optimizer: MKOR, layer: Any) -> dict[str, Any]:
        memory = optimizer.memory(layer)
        return {"Ainv": memory["input_inverse"], "Ginv": memory["output_inverse"]}

    return trajectory(vector, device, make, factors)


RULES = {"mkor": mkor}
