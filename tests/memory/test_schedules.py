import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyak.memory import (
    beta_of_half_life,
    constant_beta,
    cosine_beta,
    ema,
    half_life_beta,
    power_beta,
    ramp_beta,
    uniform_beta,
    warmup_beta,
)

unit = st.floats(0.0, 1.0)
counts = st.integers(1, 10**7)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_uniform_schedule_gives_the_mean(values):
    average = torch.tensor(1e3, dtype=torch.float64)
    for t, value in enumerate(values, start=1):
        average = ema(average, torch.tensor(value, dtype=torch.float64), 1.0 - uniform_beta(t))
    assert average.item() == pytest.approx(sum(values) / len(values), rel=1e-9, abs=1e-9)


@given(counts, unit)
def test_power_zero_is_uniform_and_constant_is_constant(t, beta):
    assert power_beta(t, 0.0) == pytest.approx(uniform_beta(t), abs=1e-15)
    assert constant_beta(t, beta) == beta


@given(st.integers(1, 40), st.floats(0.0, 30.0))
def test_power_schedule_weighs_by_a_power_of_time(updates, gamma):
    weights = []
    for t in range(1, updates + 1):
        beta = power_beta(t, gamma)
        weights = [beta * weight for weight in weights] + [1.0 - beta]
    edges = [(t / updates) ** (gamma + 1.0) for t in range(updates + 1)]
    assert weights == pytest.approx([b - a for a, b in pairwise(edges)], rel=1e-9, abs=1e-12)


@given(st.integers(1, 20), st.integers(1, 100), st.floats(0.0, 30.0))
def test_power_schedule_of_every_uth_step_forgets_as_u_single_ones(acted, u, gamma):
    single = math.prod(power_beta(t, gamma) for t in range((acted - 1) * u + 1, acted * u + 1))
    assert power_beta(acted * u, gamma, delta=u) == pytest.approx(single, rel=1e-9, abs=1e-300)


SCHEDULES = {
    "uniform": uniform_beta,
    "warmup": lambda t: warmup_beta(t, 0.999, 0.75, 2.0, 10, 0.1),
    "ramp": lambda t: ramp_beta(t, 0.999, 10, 0.05),
    "half life": lambda t: half_life_beta(t, 1000.0),
    "power": lambda t: power_beta(t, 6.94),
    "cosine": lambda t: cosine_beta(t - 1, 10**6, 0.99, 1.0),
    "closed cosine": lambda t: cosine_beta(t - 1, 10**6, 0.99, 1.0, closed=True),
}


@pytest.mark.parametrize("name", SCHEDULES)
@given(t=counts)
def test_schedules_are_weights_and_rise(name, t):
    now, then = SCHEDULES[name](t), SCHEDULES[name](t + 1)
    assert 0.0 <= now <= then <= 1.0


@pytest.mark.parametrize("schedule", [warmup_beta, ramp_beta])
@given(t=counts, decay=unit, min_share=unit, after=st.integers(0, 1000))
def test_copies_until_the_start_and_stays_between_the_bounds(schedule, t, decay, min_share, after):
    beta = schedule(t, decay, update_after_step=after, min_decay=min_share * decay)
    if t <= after + 1:
        assert beta == 0.0
    else:
        assert min_share * decay <= beta <= decay


@given(st.floats(1.0, 1e6), st.floats(1.0, 1e3), st.floats(1.0, 1e6))
def test_half_life_without_ramp_up_is_that_half_life(t, delta, half_life):
    assert half_life_beta(t, half_life, delta, None) == pytest.approx(beta_of_half_life(half_life / delta), rel=1e-12)


@given(st.integers(1, 1000), unit, unit, st.booleans())
def test_cosine_starts_at_start_and_stays_at_end(n, start, end, closed):
    if n > 1:
        assert cosine_beta(0, n, start, end, closed) == pytest.approx(start, abs=1e-15)
    assert cosine_beta(n, n, start, end, closed) == cosine_beta(n + 7, n, start, end, closed) == end
    assert (cosine_beta(n - 1, n, start, end, closed=True)) == end


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: constant_beta(0, 0.9), "t must be at least 1, got 0"),
        (lambda: constant_beta(1, 1.1), r"beta must be in \[0, 1\], got 1.1"),
        (lambda: uniform_beta(0), "t must be at least 1, got 0"),
        (lambda: warmup_beta(1, power=-1.0), "power must be at least 0, got -1.0"),
        (lambda: warmup_beta(1, inv_gamma=0.0), "inv_gamma must be greater than 0, got 0.0"),
        (lambda: warmup_beta(1, update_after_step=-1), "update_after_step must be at least 0, got -1"),
        (lambda: warmup_beta(1, decay=0.5, min_decay=0.6), r"min_decay must be in \[0, decay\] = \[0, 0.5\], got 0.6"),
        (lambda: ramp_beta(1, decay=math.nan), r"decay must be in \[0, 1\], got nan"),
        (lambda: half_life_beta(1, 0.0), "half_life must be greater than 0, got 0.0"),
        (lambda: half_life_beta(1, 5.0, rampup_ratio=0.0), "rampup_ratio must be greater than 0, or None, got 0.0"),
        (lambda: power_beta(0, 1.0), "t must be greater than 0, got 0"),
        (lambda: power_beta(1, -1.0), "gamma must be greater than -1, got -1.0"),
        (lambda: cosine_beta(-1, 5, 0.9, 1.0), "k must be at least 0, got -1"),
        (lambda: cosine_beta(0, 0, 0.9, 1.0), "n must be at least 1, got 0"),
    ],
)
def test_errors_name_argument_value_and_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
