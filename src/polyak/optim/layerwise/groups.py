"""Parameter groups of layer-wise methods, and states that come into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from polyak.optim.engine.layers import Layer


def split_layers(params: Any, layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Each group as two: the parameters of the layers, and the others."""
    listed = [params] if isinstance(params, Tensor) else list(params)
    groups: list[Any] = listed if any(isinstance(entry, dict) for entry in listed) else [{"params": listed}]
    own = {id(p) for layer in layers for p in layer.params}
    found: list[dict[str, Any]] = []
    for group in groups:
        entries = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        sides: dict[Literal["matrix", "rest"], list[Any]] = {"matrix": [], "rest": []}
        for entry in entries:
            p = entry[1] if isinstance(entry, tuple) else entry
            sides["matrix" if id(p) in own else "rest"].append(entry)
        found += [{**group, "params": side, "role": role} for role, side in sides.items() if side]
    return found or groups


def check_shapes(wanted: Mapping[str, Tensor], values: Mapping[str, Any], where: str) -> None:
    """Raise ``ValueError`` unless a loaded state, if there is one, has memories like those wanted."""
    for name, tensor in wanted.items() if values else ():
        if name not in values:
            raise ValueError(f"{where}: the state_dict lacks {name}")
        if (shape := tuple(values[name].shape)) != tuple(tensor.shape):
            raise ValueError(f"{where}: {name} has shape {shape}, expected {tuple(tensor.shape)}")
