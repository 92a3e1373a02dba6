import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyak.memory import beta_of_half_life, debias, ema, ema_, half_life, heavy_ball

finite = st.floats(-1e6, 1e6)
betas = st.floats(0.0, 0.999999)


@given(finite, st.floats(0.0, 1.0), st.integers(1, 30))
def test_ema_of_a_constant_is_that_constant(value, rate, updates):
    constant = torch.full((3,), value)
    average = constant.clone()
    for _ in range(updates):
        average = ema(average, constant, rate)
    assert torch.equal(average, constant)


@given(finite, finite, st.floats(0.0, 1.0))
def test_ema_is_the_convex_combination(old, new, rate):
    average = ema(*torch.tensor([old, new], dtype=torch.float64), rate)
    expected = (1 - rate) * old + rate * new
    assert average.item() == pytest.approx(expected, rel=1e-12, abs=1e-15 * max(abs(old), abs(new)))


def test_ema_of_rate_zero_is_the_past_bit_for_bit():
    past = torch.randn(50)
    assert torch.equal(ema(past, torch.randn(50), 0.0), past)


def test_ema_in_place_is_ema_in_the_dtype_of_each_average():
    torch.manual_seed(0)
    averages = [torch.randn(5), torch.randn(2, 3).bfloat16(), torch.randn(4), torch.randn(3, dtype=torch.complex64)]
    values = [torch.randn(5), torch.randn(2, 3).bfloat16(), torch.randn(4).bfloat16(), torch.randn(3) + 1j]
    expected = [torch.lerp(a, v.to(a.dtype), 0.125) for a, v in zip(averages, values, strict=True)]
    ema_(averages, values, 0.125)
    for average, wanted in zip(averages, expected, strict=True):
        torch.testing.assert_close(average, wanted)


def test_ema_in_place_at_the_ends_is_exact_and_absorbs_nothing_it_should_not():
    average, value = torch.tensor([1.0, math.inf, 0.1]), torch.tensor([2.0, 3.0, math.nan])
    before = average.clone()
    ema_([average], [value], 0.0)
    assert torch.equal(average, before)
    ema_([average], [value.nan_to_num(7.0)], 1.0)
    assert average.tolist() == [2.0, 3.0, 7.0]


def test_ema_in_place_refuses_what_does_not_pair():
    average = torch.ones(2)
    for arguments in [([average], [], 0.5), ([average], [average], 1.5), ([average], [average], math.nan)]:
        with pytest.raises(ValueError, match=r"values|rate"):
            ema_(*arguments)
    assert average.tolist() == [1.0, 1.0]


@given(betas, finite)
def test_debias_makes_the_first_read_exact(beta, value):
    first = ema(torch.zeros((), dtype=torch.float64), torch.tensor(value, dtype=torch.float64), 1.0 - beta)
    assert first.item() / debias(beta, 1) == pytest.approx(value, rel=1e-14)


@given(betas, finite, st.integers(1, 200))
def test_debiased_average_of_a_constant_is_that_constant(beta, value, updates):
    constant, average = torch.tensor(value, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for _ in range(updates):
        average = ema(average, constant, 1.0 - beta)
    assert average.item() / debias(beta, updates) == pytest.approx(value, rel=1e-12)


@given(st.integers(1, 15), st.integers(1, 1000))
def test_debias_keeps_its_accuracy_near_one(digits, updates):
    gap = 1.0 - (1.0 - 10.0**-digits)  # what is left of the gap in the float next to 1
    assert debias(1.0 - gap, updates) == pytest.approx(-math.expm1(updates * math.log1p(-gap)), rel=1e-14)


def test_debias_at_the_ends():
    assert debias(0.0, 1) == debias(0.0, 7) == 1.0
    assert debias(1.0, 5) == 0.0
    assert debias(0.9, 10**9) == 1.0


@given(betas, st.lists(finite, min_size=1, max_size=20))
def test_heavy_ball_is_a_scaled_average(beta, signal):
    ball = average = torch.zeros((), dtype=torch.float64)
    for value in torch.tensor(signal, dtype=torch.float64):
        ball, average = heavy_ball(ball, value, beta), ema(average, value, 1.0 - beta)
    largest = max(abs(value) for value in signal)
    assert (1.0 - beta) * ball.item() == pytest.approx(average.item(), rel=1e-9, abs=1e-12 * largest)


def test_heavy_ball_gain_and_negative_momentum():
    assert torch.equal(heavy_ball(torch.tensor([2.0]), torch.tensor([3.0]), -0.5, 2.0), torch.tensor([5.0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scalars_may_be_0d_float64_tensors_and_keep_the_dtype(dtype):
    x, y, rate = torch.randn(8).to(dtype), torch.randn(8).to(dtype), torch.tensor(0.1, dtype=torch.float64)
    assert ema(x, y, rate).dtype == dtype
    assert heavy_ball(x, y, rate, rate).dtype == dtype
    assert torch.equal(ema(x, y, rate), ema(x, y, 0.1))


@given(st.floats(1e-3, 1e9))
def test_half_life_and_back(updates):
    beta = beta_of_half_life(updates)
    assert 0.0 <= beta < 1.0
    assert half_life(beta) == pytest.approx(updates, rel=max(1e-12, 4e-16 * updates))
    assert beta**updates == pytest.approx(0.5, rel=max(1e-12, 4e-16 * updates))


def test_half_life_at_the_ends():
    assert (half_life(0.0), half_life(1.0)) == (0.0, math.inf)
    assert (beta_of_half_life(0.0), beta_of_half_life(math.inf)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: debias(1.5, 1), r"beta must be in \[0, 1\], got 1.5"),
        (lambda: debias(math.nan, 1), r"beta must be in \[0, 1\], got nan"),
        (lambda: debias(0.9, 0), "t must be at least 1, got 0"),
        (lambda: half_life(-0.1), r"beta must be in \[0, 1\], got -0.1"),
        (lambda: beta_of_half_life(-1.0), r"updates must be in \[0, inf\], got -1.0"),
    ],
)
def test_errors_name_argument_value_and_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_averages_compile_without_a_graph_break():
    def step(m, v, x, rate, momentum):
        return ema(m, x, rate), heavy_ball(v, x, momentum)

    m, v, x = torch.randn(3, 16)
    scalars = torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)
    compiled = torch.compile(step, backend="eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(m, v, x, *scalars), step(m, v, x, *scalars), rtol=0, atol=0)
