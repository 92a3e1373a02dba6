"""A recorded vector: its manifest and its arrays, of which a recomputation sees the inputs alone."""

import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

RECORDED = Path(__file__).parents[1] / "vectors"
SHARED = "inputs"
INPUTS = re.compile(r"(case\d+/)?in/.*|(p0|g|mask)/.*|loss|(?!out/).*/widths")
PLAIN_INPUTS = {  # of sources whose keys do not say what is an input
    "dbf-newton": re.compile(r"X|Y|idx|theta0|f|Q"),
    "gl-fista": re.compile(r"points|laplacian|labelled|labels|u0"),
    **dict.fromkeys(("mkor", "singd", "sngd"), re.compile(r"X|Y")),
    "lens": re.compile(r"X|Y|[Wb]\d+_0"),
}


class Unknown(LookupError):
    """Nothing here recomputes such a vector; says why."""


class Vector:
    """A vector of a folder.

    Args:
        folder: where ``NAME.json`` and ``NAME.npz`` lie, and the shared ``inputs.npz``.
        name: its name.

    Raises:
        Unknown: if it has no manifest.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        path = folder / f"{name}.json"
        if not path.exists():
            raise Unknown(f"there is no {path}")
        self.manifest: dict[str, Any] = {"name": name, **json.loads(path.read_text())}
        self.hyperparameters: dict[str, Any] = self.manifest.get("hyperparameters", {})
        self.rule, self.variant = self.manifest["rule"], self.manifest.get("variant", "")

    @cached_property
    def recorded(self) -> dict[str, np.ndarray]:
        """All that is recorded under its name; nothing if only a manifest is there."""
        return _arrays(self.folder / f"{self.name}.npz")

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """The recorded inputs: its own, and those of the folder where it has none of that kind."""
        own = {key: value for key, value in self.recorded.items() if self.is_input(key)}
        has_trajectory = any(key.startswith("p0/") for key in own)
        return own if has_trajectory else {**_arrays(self.folder / f"{SHARED}.npz"), **own}

    def is_input(self, key: str) -> bool:
        """Whether an array of this vector is an input."""
        patterns = (INPUTS, PLAIN_INPUTS.get(self.rule, INPUTS))
        return any(pattern.fullmatch(key) for pattern in patterns)

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """What was recorded and is no input."""
        return {key: value for key, value in self.recorded.items() if not self.is_input(key)}

    @property
    def tensors(self) -> list[str]:
        """Names of the tensors of a trajectory: those recorded, or all that have a start."""
        named = [key.removeprefix("p/") for key in self.recorded if key.startswith("p/")]
        return named or [key.removeprefix("p0/") for key in self.inputs if key.startswith("p0/")]

    @property
    def length(self) -> int:
        """The number of steps of a trajectory: those of the manifest, or as many as there are gradients."""
        return int(self.manifest.get("steps", len(self.inputs[f"g/{self.tensors[0]}"])))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the source's run: float64 unless the manifest begins with another."""
        found = re.match(r"(float64|float32|float16|bfloat16)\b", str(self.manifest.get("dtype", "")))
        return getattr(torch, found[1]) if found else torch.float64

    def input(self, key: str, device: str = "cpu") -> Tensor:
        """An input; floating ones in :attr:`dtype`.

        Raises:
            Unknown: if it is not recorded.
        """
        if key not in self.inputs:
            raise Unknown(f"{self.name} has no input {key!r}")
        value = torch.from_numpy(np.array(self.inputs[key]))
        return value.to(device, self.dtype if value.is_floating_point() else value.dtype)

    def given(self, key: str, device: str = "cpu") -> Tensor:
        """What the manifest says is given, though it is recorded under no input's name; as :meth:`input`.

        Raises:
            Unknown: if it is not recorded.
        """
        if key not in self.recorded:
            raise Unknown(f"{self.name} has no {key!r}")
        value = torch.from_numpy(self.recorded[key].copy())
        return value.to(device, self.dtype if value.is_floating_point() else value.dtype)

    def option(self, name: str, *default: Any) -> Any:
        """A hyperparameter, or the default of its source if one is given.

        Raises:
            Unknown: if it is neither recorded nor given.
        """
        if name not in self.hyperparameters and not default:
            raise Unknown(f"{self.name} does not say its hyperparameter {name!r}")
        return self.hyperparameters.get(name, *default)

    def read_all(self, *names: str) -> None:
        """Refuse hyperparameters that nothing reads.

        Raises:
            Unknown: if there are others than these; names them.
        """
        unread = {k: v for k, v in self.hyperparameters.items() if k not in names}
        if unread:
            raise Unknown(f"nothing reads {unread} of {self.name}")

    def said(self, pattern: str, where: str = "keys") -> tuple[str, ...]:
        """The groups of a pattern in the manifest's words on something, for what stands there alone.

        Raises:
            Unknown: if it does not say it.
        """
        found = re.search(pattern, str(self.manifest.get(where, "")))
        if not found:
            raise Unknown(f"the manifest of {self.name} does not say {pattern!r} under {where!r}")
        return found.groups()

    def steps(self, pattern: str) -> Iterator[int]:
        """The numbers that a pattern finds in the inputs' keys, from the first on."""
        return iter(sorted({int(found[1]) for key in self.inputs if (found := re.match(pattern, key))}))


def array(value: Any) -> np.ndarray:
    """A tensor or numbers as an array; bfloat16, which numpy lacks, as float32."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()


def names_in(folder: Path, *rules: str) -> list[str]:
    """The vectors of a folder, all or those of some rules."""
    found = sorted(path.stem for path in folder.glob("*.json") if path.stem != SHARED)
    return [name for name in found if not rules or json.loads((folder / f"{name}.json").read_text())["rule"] in rules]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path) as file:
        return {key: file[key] for key in file.files}
