"""Layer-wise second order: trajectories of a small network, with the factors of its layers."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from polyak.memory.structure import Structure
from polyak.memory.structured import Blocks
from polyak.optim.layerwise import IKFAC, MKOR, SINGD, SNGD, LayerMethod
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


class Untransposed(Blocks):
    """Blocks as singd 0.0.5 has them, by itself where the transpose is meant (see the manifests)."""

    def right(self, rows: Tensor, k: Tensor) -> Tensor:
        return self.right_transposed(rows, k)

    def square(self, k: Tensor, n: int) -> Tensor:
        dense = self.dense(k, n)
        return self.taken(dense @ dense.T)


class Published(SINGD):
    """SINGD with blocks as they were published."""

    @classmethod
    def sides(cls, layer: Any, group: Any) -> list[tuple[str, Structure, int]]:
        return [(s, Untransposed() if isinstance(k, Blocks) else k, n) for s, k, n in super().sides(layer, group)]


def singd(vector: Vector, execution: str = "eager", device: str = "cpu") -> Outputs:
    """SINGD, and IKFAC where the manifest is like it."""
    given = dict(vector.hyperparameters)
    method = IKFAC if given.pop("kfac_like") else Published
    return _natural(vector, method, given, execution, device)


def sngd(vector: Vector, execution: str = "eager", device: str = "cpu") -> Outputs:
    """SNGD, whose rate of the factors is a schedule of its own in the first steps."""
    given = {name: value for name, value in vector.hyperparameters.items() if name != "lr_cov"}
    return _natural(vector, SNGD, given, execution, device)


def _natural(vector: Vector, method: type[SINGD], given: dict[str, Any], execution: str, device: str) -> Outputs:
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}

    def make(model: nn.Module) -> SINGD:
        return method(model, execution=execution, **given)

    def factors(optimizer: SINGD, layer: Any) -> dict[str, Any]:
        sides = optimizer.sides(layer, optimizer.group_of(layer))
        memory = optimizer.memory(layer)
        return {
            key: structure.dense(memory[f"{side}_factor"], n)
            for key, (side, structure, n) in zip("KC", sides, strict=True)
        }

    return trajectory(vector, device, make, factors)


RULES = {"mkor": mkor, "singd": singd, "sngd": sngd}
