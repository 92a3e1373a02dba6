import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyak.optim.solvers import Compressor, Contractive, Identity, Natural, RandK, TopK, Unbiased

seeds = st.integers(0, 2**31)
UNBIASED = [RandK(1), RandK(3), RandK(20), Natural(), Identity()]
CONTRACTIVE = [TopK(1), TopK(3), TopK(20), Identity()]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(seed, entries=20):
    return torch.randn(entries, generator=generator(seed), dtype=torch.float64)


@given(seeds, st.integers(1, 20))
def test_rand_k_keeps_k_entries_scaled(seed, k):
    u = draw(seed)
    found = RandK(k)(u, generator(seed))
    kept = found != 0
    assert int(kept.sum()) == k
    torch.testing.assert_close(found[kept], u[kept] * 20 / k)


@given(seeds, st.integers(1, 20))
def test_top_k_keeps_the_largest(seed, k):
    u = draw(seed)
    found = TopK(k)(u, generator())
    kept = found != 0
    assert int(kept.sum()) == k
    assert torch.equal(found[kept], u[kept])
    assert k == 20 or u[kept].abs().min() >= u[~kept].abs().max()
    assert float((found - u).square().sum()) <= (1 - k / 20) * float(u @ u) * (1 + 1e-12)


@given(seeds)
def test_natural_compression_takes_a_neighbouring_power_of_two(seed):
    u = torch.cat([draw(seed), torch.tensor([0.0, 1.0, -0.25, 3.0]).double()])
    found = Natural()(u, generator(seed))
    low = 2.0 ** u[u != 0].abs().log2().floor()
    size = found[u != 0].abs()
    assert bool(((size == low) | (size == 2 * low)).all())
    assert torch.equal(found.sign(), u.sign())
    assert found[20:23].tolist() == [0.0, 1.0, -0.25]


@pytest.mark.parametrize("compressor", UNBIASED, ids=lambda c: f"{type(c).__name__}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unbiased_ones_keep_their_word(compressor, dtype):
    compressor.verify(20)
    u = draw(1).to(dtype)
    g = generator(2)
    draws = torch.stack([compressor(u, g) for _ in range(4000)])
    q, size = compressor.ratio(20), float(u.double() @ u.double())
    assert draws.dtype == dtype
    assert float((draws.mean(0) - u).square().sum()) <= 9 * q * size / 4000 + 1e-9
    assert float(draws.square().sum(1).mean()) <= 1.1 * q * size


@pytest.mark.parametrize("compressor", CONTRACTIVE, ids=lambda c: f"{type(c).__name__}")
def test_contractive_ones_take_every_vector(compressor):
    for u in (
        draw(0),
        torch.zeros(20),
        torch.ones(20),
        1e-30 * torch.ones(20),
        1e30 * draw(1).float(),
        torch.eye(20)[3],
    ):
        assert compressor(u, generator()).shape == (20,)


def test_sizes_and_what_is_sent():
    assert (RandK(5).sent(20), TopK(5).sent(20), Natural().sent(32), Identity().sent(20)) == (5, 5, 9, 20)
    assert (RandK(5).ratio(20), TopK(50).ratio(20), Natural().ratio(3), Identity().ratio(9)) == (4, 1, 1.125, 1)
    assert torch.equal(TopK(50)(draw(0), generator()), draw(0))
    assert torch.equal(RandK(50)(draw(0), generator()), draw(0).flip(0).flip(0))
    for make in (RandK, TopK):
        with pytest.raises(ValueError, match=rf"{make.__name__}: k must be in \[1, 4\], the number of entries, got 5"):
            make(5).check_size(4)
        for bad, kind in ((0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError)):
            with pytest.raises(kind, match="k must be"):
                make(bad)


class Halved(Unbiased):
    """Biased: nothing is drawn, and half of it is lost."""

    def compress(self, u, generator):
        return u / 2

    def ratio(self, entries):
        return 1.0

    def sent(self, entries):
        return float(entries)


class TopSaidUnbiased(Halved):
    def compress(self, u, generator):
        return TopK(3).compress(u, generator)

    def ratio(self, entries):
        return entries / 3


class Unscaled(Halved):
    def compress(self, u, generator):
        return RandK(3).compress(u, generator) * 3 / u.numel()

    def ratio(self, entries):
        return entries / 3


class Understated(Halved):
    def compress(self, u, generator):
        return RandK(3).compress(u, generator)

    def ratio(self, entries):
        return entries / 9


@pytest.mark.parametrize("make", [Halved, TopSaidUnbiased, Unscaled])
@pytest.mark.parametrize("entries", [10, 100, 2000])
def test_a_bias_is_found(make, entries):
    with pytest.raises(ValueError, match=f"{make.__name__} says that it is unbiased and is not"):
        make().verify(entries)


def test_an_understated_ratio_is_found():
    with pytest.raises(ValueError, match=r"Understated: E \|Q\(u\)\|\^2 is .* its ratio allows 11.1"):
        Understated().verify(100)


class Other(Contractive):
    """Returns what it is told to."""

    def __init__(self, found):
        self.found = found

    def compress(self, u, generator):
        return self.found(u)

    def ratio(self, entries):
        return 2.0

    def sent(self, entries):
        return float(entries)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (lambda u: -u, r"breaks its contract: \|C\(u\) - u\|\^2 is 4 \|u\|\^2, and its ratio allows 0.5"),
        (lambda u: torch.zeros_like(u), "breaks its contract"),
        (lambda u: u[:3], r"made torch.float64 \(3,\) of torch.float64 \(20,\)"),
        (lambda u: u.float(), r"made torch.float32 \(20,\)"),
        (lambda u: u * math.nan, "returned a vector that is not finite"),
    ],
)
def test_a_broken_contract_is_told_at_the_call(found, words):
    with pytest.raises(RuntimeError, match=f"Other {words}"):
        Other(found)(draw(0), generator())
    Other(lambda u: u / 2)(draw(0), generator())


def test_classes_say_the_contract():
    assert issubclass(Identity, Unbiased)
    assert issubclass(Identity, Contractive)
    assert not issubclass(TopK, Unbiased)
    assert not issubclass(RandK, Contractive)
    with pytest.raises(NotImplementedError):
        Compressor()(draw(0), generator())
