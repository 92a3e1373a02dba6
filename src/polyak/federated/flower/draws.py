"""Generators whose whole state comes from a secret, where torch keeps 32 bits of a seed.

Whoever can try all 2^32 seeds finds the noise of a reply, and takes it off.
"""

from __future__ import annotations

import hashlib

import torch

WORDS = 624
"""Of the Mersenne Twister's state."""
BEFORE = 3
"""64-bit words before them in torch's state: its seed, how many words are left, which is next."""


def generator_of(*parts: object) -> torch.Generator:
    """A generator on the CPU whose Mersenne Twister starts at SHAKE-256 of some numbers and texts.

    Args:
        parts: of which each counts, and their order.
    """
    found = hashlib.shake_256(repr(parts).encode()).digest(4 * WORDS)
    words = [int.from_bytes(found[i : i + 4], "little") for i in range(0, len(found), 4)]
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    state.view(torch.int64)[BEFORE : BEFORE + WORDS] = torch.tensor(words)
    generator.set_state(state)
    return generator
