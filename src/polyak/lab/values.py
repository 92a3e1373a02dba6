"""What counts as a number, said once."""

from __future__ import annotations

import math


def is_number(value: object) -> bool:
    """Whether a value is an int or a float; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def finite(value: float) -> float | None:
    """A number as JSON has it, which knows neither infinity nor NaN: None in their place."""
    return value if math.isfinite(value) else None
