"""Precision in which sums over many elements are formed."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` itself, or its float32 copy when it is float16 or bfloat16."""
    return x.float() if x.dtype in HALF else x
