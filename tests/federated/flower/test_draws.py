"""Generators that start at all of a secret."""

import hashlib

import numpy as np
import pytest
import torch

pytest.importorskip("flwr")

from polyak.federated.flower.draws import generator_of


def test_the_twister_starts_at_shake_256():
    """NumPy's Mersenne Twister, at the same state, says which numbers come."""
    digest = hashlib.shake_256(b"(5, 'a')").digest(4 * 624)
    twister = np.random.MT19937(0)
    key = np.frombuffer(digest, "<u4")
    twister.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
    drawn = torch.randint(2**20, (2000,), generator=generator_of(5, "a"))
    assert drawn.tolist() == (twister.random_raw(2000) % 2**20).tolist()


def test_seeds_that_torch_takes_for_one_are_two():
    low, high = (torch.Generator().manual_seed(seed) for seed in (7, 7 + (3 << 32)))
    assert torch.equal(torch.randn(20, generator=low), torch.randn(20, generator=high))
    assert not torch.equal(*(torch.randn(20, generator=generator_of(seed)) for seed in (7, 7 + (3 << 32))))


def test_a_state_goes_on_in_another_generator():
    one = generator_of("secret")
    torch.randn(7, generator=one)
    other = torch.Generator()
    other.set_state(one.get_state())
    assert torch.equal(torch.randn(700, generator=one), torch.randn(700, generator=other))
