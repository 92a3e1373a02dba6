"""Vectors made by tests: drawn numbers, common inputs, and their files."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.reproduce.run import check
from tests.reproduce.vector import Vector

SHAPES = {"first.weight": (5, 3), "stack": (2, 4, 3), "gain": (7,), "one": (1,)}
Arrays = dict[str, np.ndarray]


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def put(folder: Path, name: str, manifest: dict[str, Any], arrays: Arrays) -> Vector:
    """Record a vector."""
    full = {"name": name, "dtype": "float64", "variant": "default", **manifest}
    (folder / f"{name}.json").write_text(json.dumps(full))
    np.savez(folder / f"{name}.npz", **arrays)
    return Vector(folder, name)


def common(folder: Path, steps: int = 9) -> Arrays:
    """Other common inputs."""
    inputs = {f"p0/{name}": draw(i, *shape) for i, (name, shape) in enumerate(SHAPES.items())}
    inputs |= {f"g/{name}": draw(100 + i, steps, *shape) for i, (name, shape) in enumerate(SHAPES.items())}
    np.savez(folder / "inputs.npz", **inputs)
    return inputs


def reproduced(vector: Vector, execution: str = "eager") -> None:
    """It must be."""
    state, words = check(vector, [execution])
    assert state == "reproduced", words
