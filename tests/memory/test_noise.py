import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyak.memory import uniform, uniform_bits

N = 2**18
seeds = st.integers(-(2**63), 2**63 - 1)


def bits(seed, n=N):
    return uniform_bits(torch.empty(n), torch.tensor(seed))


def ones(x):
    """How often each of the 32 bits is set."""
    return torch.stack([(x >> k) & 1 for k in range(32)]).double().mean(dim=1)


def correlation(a, b):
    return torch.corrcoef(torch.stack([uniform(a), uniform(b)]).double())[0, 1].abs().item()


FIVE_SIGMA = 5 / N**0.5


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32, 2**63 - 1, 0x9E3779B97F4A7C15 - 2**64])
def test_every_bit_is_set_half_of_the_time(seed):
    assert (ones(bits(seed)) - 0.5).abs().max() < FIVE_SIGMA / 2


@pytest.mark.parametrize("seed", [0, 7, 2**40])
@pytest.mark.parametrize("apart", [1, 2, 16, 256, 4096])
def test_neighbours_are_unrelated(seed, apart):
    x = bits(seed)
    assert correlation(x[apart:], x[:-apart]) < 1.1 * FIVE_SIGMA
    assert (ones(x[apart:] ^ x[:-apart]) - 0.5).abs().max() < 1.1 * FIVE_SIGMA / 2


@pytest.mark.parametrize("seed", [0, 12345, 2**32 - 1, -5])
@pytest.mark.parametrize("apart", [1, 2, 2**16, 2**31, 2**32, 2**33, 2**62])
def test_seeds_near_each_other_give_unrelated_bits(seed, apart):
    a, b = bits(seed), bits(seed + apart)
    assert correlation(a, b) < FIVE_SIGMA
    assert (ones(a ^ b) - 0.5).abs().max() < FIVE_SIGMA / 2


@pytest.mark.parametrize("apart", [1, 2**32])
def test_seeds_do_not_shift_each_others_bits(apart):
    a, b = bits(0), bits(apart)
    assert torch.isin(a, b).double().mean() < 5 * N / 2**32 + 1e-4
    means = torch.stack([uniform(bits(apart * t, 1024)).double().mean() for t in range(1024)])
    assert means.mean().item() == pytest.approx(0.5, abs=5 * 12**-0.5 / 1024)


def test_low_and_high_halves_are_unrelated():
    x = bits(3)
    assert correlation(x, x << 16) < FIVE_SIGMA


def test_one_element_over_many_seeds():
    one = torch.stack([bits(seed, 4)[2] for seed in range(4096)])
    assert (ones(one) - 0.5).abs().max() < 5 * 0.5 / 64
    assert correlation(one[1:], one[:-1]) < 5 / 64


def test_bytes_are_evenly_spread():
    for shift in (0, 8, 16, 24):
        counts = torch.bincount((bits(11) >> shift) & 255, minlength=256).double()
        chi2 = ((counts - N / 256) ** 2 / (N / 256)).sum().item()
        assert 255 - 5 * 510**0.5 < chi2 < 255 + 5 * 510**0.5


@given(seeds, st.integers(0, 300))
def test_a_longer_tensor_begins_alike(seed, n):
    assert torch.equal(bits(seed, n), bits(seed, 300)[:n])
    assert bits(seed, n).dtype == torch.int32


@given(seeds, st.integers(0, 20), st.integers(0, 20))
def test_a_matrix_has_the_bits_of_its_rows(seed, rows, cols):
    assert torch.equal(
        uniform_bits(torch.empty(rows, cols), torch.tensor(seed)), bits(seed, rows * cols).view(rows, cols)
    )


def test_uniform_numbers():
    u = uniform(bits(1))
    assert u.min() >= 0
    assert u.max() < 1
    assert u.double().mean().item() == pytest.approx(0.5, abs=FIVE_SIGMA * 12**-0.5)
    assert uniform(torch.tensor([0, -1], dtype=torch.int32)).tolist() == [0.0, 1 - 2.0**-24]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: uniform_bits(torch.ones(2, 2, 1), torch.tensor(1)), ValueError, r"like must be .*got \(2, 2, 1\)"),
        (lambda: uniform_bits(torch.ones(()), torch.tensor(1)), ValueError, r"like must be .*got \(\)"),
        (lambda: uniform_bits(torch.ones(2), torch.ones(1).long()), ValueError, r"seed must be 0-dim.*got \(1,\)"),
        (lambda: uniform_bits(torch.ones(2), torch.tensor(1.0)), TypeError, "seed must have dtype torch.int64, got"),
    ],
)
def test_errors_name_argument_value_and_range(call, error, message):
    with pytest.raises(error, match=message):
        call()
