"""How far a recomputation is from what was recorded, and how far it may be."""

import math
import re
from typing import NamedTuple

import numpy as np

from tests.reproduce.vector import Vector

RTOL = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 2e-2}
FLOOR = 1e-3
APPROXIMATE = re.compile(r"(\w+) is approximate: compare to ([\d.]+) ?%")
"""What a manifest's notes say of outputs whose source only approximates them."""


class Limit(NamedTuple):
    """The largest relative error allowed: of values, or of the way that weights have gone since the start.

    Entries below the share ``floor`` of their array's largest are compared as if they were so large.
    """

    rtol: float
    of_the_way: bool = False
    floor: float = FLOOR


def limit(vector: Vector) -> Limit:
    """By rule and dtype, unless the manifest's notes name a tolerance."""
    said = re.search(r"tolerance\s+(\d[\d.]*e-\d+)", str(vector.manifest.get("notes", "")))
    if said:
        # the entries of a minimizer that a float32 solver found are off by a share of the whole
        return Limit(float(said[1]), floor=1.0 if vector.rule == "cagrad" else FLOOR)
    half = ("bf16", "official dtypes")  # of Newton-Schulz, which rounds in another order
    if vector.rule in ("muon", "namo", "namo-d") and any(words in vector.variant for words in half):
        return Limit(2e-2, of_the_way=True)
    if vector.rule == "man" and "MAN++" in vector.variant:  # batch normalization over a few vectors amplifies rounding
        return Limit(1e-8)
    if vector.rule == "mt-dao" and "bias_correction=True" in vector.variant:  # of the source, in float32
        return Limit(2e-8, floor=1.0)
    return Limit(RTOL[str(vector.dtype).removeprefix("torch.")])


def error(vector: Vector, got: dict[str, np.ndarray]) -> float:
    """The largest relative error of all recorded outputs; infinite where one is missing or of another shape."""
    worst, allowed = 0.0, limit(vector)
    rough = APPROXIMATE.search(str(vector.manifest.get("notes", "")))
    for key, want in vector.outputs.items():
        found = got.get(key)
        if found is None or found.shape != want.shape:
            return math.inf
        start = vector.inputs[f"p0/{key[2:]}"] if allowed.of_the_way and key.startswith("p/") else None
        off = relative(found, want, start, allowed.floor)
        if rough and rough[1].lower() in key.lower():  # as a share of what is allowed there
            off *= allowed.rtol / (float(rough[2]) / 100)
        worst = max(worst, off)
    return worst


def relative(got: np.ndarray, want: np.ndarray, start: np.ndarray | None = None, floor: float = FLOOR) -> float:
    """The largest error of an array, relative to its entries or to how far they have gone from ``start``.

    Integers and booleans are equal or infinitely wrong; NaN and infinities must stand at the same places.
    """
    if want.dtype.kind in "iub":
        return 0.0 if np.array_equal(got, want) else math.inf
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return math.inf
    got, want = got[finite].astype(np.float64), want[finite].astype(np.float64)
    if not want.size:
        return 0.0
    if start is not None:
        scale = np.abs(want.reshape(-1, start.size) - start.reshape(-1)).max()
    else:
        scale = np.maximum(np.abs(want), floor * np.abs(want).max())
    errors = np.abs(got - want)
    return float(np.divide(errors, scale, out=np.where(errors > 0, np.inf, 0.0), where=scale > 0).max())
