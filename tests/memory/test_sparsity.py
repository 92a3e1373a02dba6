"""N:M masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyak.memory import n_of_m


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(1, 2), (1, 4), (2, 4), (3, 4), (2, 3), (4, 4)]), st.integers(1, 3))
def test_the_largest_of_each_group_stay(seed: int, nm: tuple[int, int], groups: int) -> None:
    n, m = nm
    w = torch.randn(5, groups * m, generator=torch.Generator().manual_seed(seed))
    mask = n_of_m(w, n, m)
    for row, kept in zip(w.split(m, dim=1), mask.split(m, dim=1), strict=True):
        assert bool((kept.sum(1) == n).all())
        least = row.abs().masked_fill(kept == 0, torch.inf).amin(1)
        assert bool((row.abs().masked_fill(kept == 1, 0.0).amax(1) <= least).all())


def test_of_equals_the_first_stay() -> None:
    assert n_of_m(torch.tensor([[1.0, -1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]]), 2, 4).tolist() == [
        [1, 1, 0, 0, 1, 1, 0, 0]
    ]


def test_convolutions_are_grouped_along_their_input_channels() -> None:
    w = torch.randn(6, 8, 3, 2, generator=torch.Generator().manual_seed(0))
    mask = n_of_m(w, 2, 4)
    by_hand = n_of_m(w.permute(0, 2, 3, 1).reshape(-1, 8), 2, 4).reshape(6, 3, 2, 8).permute(0, 3, 1, 2)
    assert torch.equal(mask, by_hand)
    assert torch.equal(n_of_m(w.to(memory_format=torch.channels_last), 2, 4), by_hand)
    assert torch.equal(n_of_m(torch.stack([w, -w]), 2, 4, dim=2), torch.stack([by_hand, by_hand]))


@pytest.mark.parametrize(
    ("n", "m", "dim", "match"),
    [
        (0, 4, 1, "n must be in 1 to m = 4, got 0"),
        (5, 4, 1, "n must be in 1 to m = 4, got 5"),
        (2, 3, 1, "m must be a divisor of the 4 inputs"),
        (2, 4, 2, r"dim must be a dimension of a weight of shape \(2, 4\), got 2"),
    ],
)
def test_refused(n: int, m: int, dim: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        n_of_m(torch.ones(2, 4), n, m, dim)
