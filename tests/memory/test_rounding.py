import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyak.memory import ema, kahan_add, round_stochastic, to_bfloat16_stochastic, uniform_bits

seeds = st.integers(-(2**63), 2**63 - 1)


def draw(seed, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed % 2**63))


def bits(seed, shape):
    return torch.randint(0, 2**16, shape, dtype=torch.int32, generator=torch.Generator().manual_seed(seed % 2**63))


def neighbours(x):
    """The largest bfloat16 towards zero and the smallest away from it."""
    pattern = x.view(torch.int32) & ~0xFFFF
    return pattern.view(torch.float32), (pattern + 0x10000).view(torch.float32)


@given(seeds, st.floats(1e-30, 1e30))
def test_stochastic_rounding_goes_to_a_neighbour(seed, scale):
    x = draw(seed, 64).mul(scale).float()
    below, above = neighbours(x)
    rounded = to_bfloat16_stochastic(x, bits(seed, x.shape))
    assert rounded.dtype == torch.bfloat16
    assert ((rounded.float() == below) | (rounded.float() == above)).all()


@given(st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30))
def test_stochastic_rounding_over_all_noise_has_the_exact_mean(value):
    noise = torch.arange(2**16)
    x = torch.full((2**16,), value)
    below, _ = neighbours(x)
    mean = (to_bfloat16_stochastic(x, noise).double() - below.double()).mean() + below[0].double()
    assert mean.item() == value  # 2**16 equally likely outcomes, all sums exact in float64


def test_stochastic_rounding_keeps_what_bfloat16_can_hold():
    special = torch.tensor([0.0, -0.0, 1.0, -3.0, math.inf, -math.inf, math.nan, 2.0**100])
    payload = torch.tensor([0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)  # NaNs
    for noise in (0, 1, 0x7FFF, 0xFFFF, -1, 0x10000):
        rounded = to_bfloat16_stochastic(special, torch.full((8,), noise))
        torch.testing.assert_close(rounded.float(), special, rtol=0, atol=0, equal_nan=True)
        assert to_bfloat16_stochastic(payload, torch.full((3,), noise)).isnan().all()


def test_noise_counts_by_its_low_bits_alone():
    x, noise = torch.randn(100), torch.randint(0, 2**16, (100,))
    for other in (noise - 2**16, noise + 2**40, noise.int(), noise.to(torch.uint16), noise.to(torch.int16)):
        assert torch.equal(to_bfloat16_stochastic(x, other), to_bfloat16_stochastic(x, noise))


def test_a_bfloat16_average_moves_only_with_stochastic_rounding():
    nearest = stochastic = torch.ones(1000, dtype=torch.bfloat16)
    for seed in range(100):
        target = torch.zeros(1000)
        nearest = ema(nearest.float(), target, 1e-3).to(torch.bfloat16)
        stochastic = to_bfloat16_stochastic(ema(stochastic.float(), target, 1e-3), bits(seed, (1000,)))
    assert (nearest == 1.0).all()
    assert stochastic.float().mean().item() == pytest.approx(0.999**100, abs=2e-3)


@given(seeds, st.integers(-40, 40))
def test_a_seed_makes_the_noise(seed, exponent):
    x, key = draw(seed, 1000).mul(2.0**exponent).float(), torch.tensor(seed)
    assert torch.equal(round_stochastic(x, torch.bfloat16, key), to_bfloat16_stochastic(x, uniform_bits(x, key)))


@given(seeds, st.integers(-30, 17))
def test_float16_goes_to_a_neighbour(seed, exponent):
    x = draw(seed, 1000).mul(2.0**exponent).float()
    rounded, nearest = round_stochastic(x, torch.float16, torch.tensor(seed)), x.half()
    way = torch.where(nearest.double() < x.double(), math.inf, -math.inf).half()
    other = torch.where(nearest.float() == x, nearest, torch.nextafter(nearest, way))
    assert ((rounded == nearest) | (rounded == other)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [1 + 2.0**-13, -3.14159, 2.0**-14 + 2.0**-26, 1.7e-7, -5.1e-5, 60001.0])
def test_the_mean_is_the_value(dtype, value):
    n = 2**20
    rounded = round_stochastic(torch.full((n,), value), dtype, torch.tensor(5)).double()
    step = (rounded.max() - rounded.min()).item()
    exact = torch.tensor(value, dtype=torch.float32).item()
    assert rounded.mean().item() == pytest.approx(exact, abs=5 * 0.5 * step / n**0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_the_type_holds_is_kept(dtype):
    tiny = torch.finfo(dtype).smallest_normal if dtype == torch.bfloat16 else 2.0**-24
    special = torch.tensor([0.0, 1.0, -3.0, math.inf, -math.inf, math.nan, tiny, -tiny, torch.finfo(dtype).max])
    for seed in range(200):
        rounded = round_stochastic(special, dtype, torch.tensor(seed))
        torch.testing.assert_close(rounded.float(), special, rtol=0, atol=0, equal_nan=True)


def test_kahan_brings_in_steps_that_bfloat16_alone_loses():
    weight, bare = (torch.ones(64, dtype=torch.bfloat16) for _ in range(2))
    compensation = torch.zeros_like(weight)
    for _ in range(1000):
        weight, compensation = kahan_add(weight, compensation, weight.float() - 1e-4)
        bare = (bare.float() - 1e-4).to(torch.bfloat16)
    assert (bare == 1).all()
    torch.testing.assert_close(weight.float() + compensation.float(), torch.full((64,), 0.9), rtol=1e-3, atol=0)
    torch.testing.assert_close(weight.float(), torch.full((64,), 0.9), rtol=2.0**-8, atol=0)


@given(seeds, st.integers(-20, 20))
def test_kahan_loses_nothing_but_the_last_bits(seed, exponent):
    start = draw(seed, 256).float()
    weight = start.to(torch.bfloat16)
    compensation = (start - weight.float()).to(torch.bfloat16)
    change = draw(seed + 1, 256).mul(2.0**exponent).float()
    new, left = kahan_add(weight, compensation, weight.float() + change)
    exact = weight.double() + compensation.double() + change.double()
    assert torch.equal(
        new, (weight.float() + ((weight.float() + change - weight.float()) + compensation.float())).bfloat16()
    )
    bound = 2.0**-15 * torch.maximum(exact.abs(), torch.maximum(weight.abs(), change.abs()).double())
    assert ((new.double() + left.double() - exact).abs() <= bound).all()


def test_kahan_lets_what_is_not_finite_through():
    weight, zero = torch.ones(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16)
    new, _ = kahan_add(weight, zero, torch.tensor([math.inf, -math.inf, math.nan]))
    torch.testing.assert_close(new.float(), torch.tensor([math.inf, -math.inf, math.nan]), equal_nan=True)


KEY = torch.tensor(1)
HALF = torch.ones(2, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: to_bfloat16_stochastic(torch.ones(2), torch.ones(2)), TypeError, "noise must have an integer dtype"),
        (
            lambda: to_bfloat16_stochastic(torch.ones(2), torch.ones(2).bool()),
            TypeError,
            "noise must .* got torch.bool",
        ),
        (
            lambda: to_bfloat16_stochastic(torch.ones(2), torch.ones(2).char()),
            TypeError,
            "noise must .* got torch.int8",
        ),
        (lambda: to_bfloat16_stochastic(torch.ones(2).int(), torch.ones(2).int()), TypeError, "x must have a real"),
        (lambda: to_bfloat16_stochastic(torch.ones(2), torch.ones(3).int()), ValueError, r"noise must be .*got \(3,\)"),
        (lambda: round_stochastic(torch.ones(2), torch.float32, KEY), ValueError, "dtype must be torch.bfloat16 or"),
        (lambda: round_stochastic(HALF, torch.bfloat16, KEY), TypeError, "x must have dtype torch.float32"),
        (lambda: kahan_add(HALF, HALF, HALF), TypeError, "new_value must have dtype torch.float32"),
        (lambda: kahan_add(HALF.half(), HALF, HALF.float()), TypeError, "weight must have dtype torch.bfloat16"),
        (lambda: kahan_add(HALF, HALF[:1], HALF.float()), ValueError, r"compensation must be of shape \(2,\)"),
    ],
)
def test_errors_name_argument_value_and_range(call, error, message):
    with pytest.raises(error, match=message):
        call()
