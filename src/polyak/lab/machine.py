"""The machine in words, the same ones in every run and in every description."""

from __future__ import annotations

import os
import platform
from functools import lru_cache

import torch


@lru_cache
def machine() -> str:
    """This machine: its name, its system, its cores and its GPUs."""
    parts = [platform.node(), platform.platform(terse=True), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    return ", ".join(parts)
