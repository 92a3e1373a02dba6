"""The global generators of Python, NumPy and torch."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

LARGEST = 2**32  # NumPy takes no larger seed


def seed_everything(seed: int) -> None:
    """Seed every global generator that a problem may draw from."""
    random.seed(seed)
    torch.manual_seed(seed)
    if numpy := sys.modules.get("numpy"):  # torch has imported it wherever it is installed
        numpy.random.seed(seed % LARGEST)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for a block, and leave them afterwards as they were before."""
    numpy = sys.modules.get("numpy")
    states = random.getstate(), torch.get_rng_state(), numpy.random.get_state() if numpy else None
    seed_everything(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        torch.set_rng_state(states[1])
        if numpy:
            numpy.random.set_state(states[2])
