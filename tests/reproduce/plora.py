"""PeriodicLoRA: one unload."""

import numpy as np

from polyak.optim.drivers import unload
from tests.reproduce.vector import Vector, array


def one_unload(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """Weight and factors behind it; what the source calls m is the share that is unloaded."""
    vector.read_all("m", "scale")
    w, a, b = (vector.input(f"in/{name}", device) for name in ("W", "A", "B"))
    found = unload(w, a, b, vector.option("scale"), 1 - vector.option("m"), "both", a)
    return {f"out/hhnqqq/{name}": array(value) for name, value in zip(("W", "A", "B"), found, strict=True)}


RULES = {"plora": one_unload}
