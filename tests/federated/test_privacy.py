"""The accountants: against numbers that can be computed otherwise, limits, and what is refused."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from polyak.federated import privacy
from polyak.federated.privacy_loss import numerical_epsilon


@pytest.mark.parametrize("order", [1.5, 2.0, 3.7, 8.0])
@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.1), (2.5, 0.4), (0.9, 0.02)])
def test_divergence_is_the_integral(noise, rate, order):
    def moment(z):
        plain, moved = stats.norm.pdf(z, 0, noise), stats.norm.pdf(z, 1, noise)
        return plain * ((1 - rate) + rate * moved / plain) ** order

    value, _ = integrate.quad(moment, -12 * noise, 12 * noise + order, limit=400, epsabs=1e-14, epsrel=1e-12)
    found = privacy.rdp_gaussian(noise, rate, 3, [order])[0]
    assert found == pytest.approx(3 * math.log(value) / (order - 1), rel=1e-7)


def test_limits():
    assert privacy.rdp_gaussian(2.0, 1.0, 5, [3.0]) == [5 * 3.0 / 8]
    assert privacy.rdp_gaussian(2.0, 0.0, 5, [3.0]) == [0.0]
    assert privacy.rdp_gaussian(2.0, 0.1, 0, [3.0]) == [0.0]
    assert privacy.rdp_gaussian(0.0, 0.1, 1, [3.0]) == [math.inf]
    assert privacy.epsilon_of(privacy.rdp_gaussian(0.0, 0.1, 1), 1e-5).epsilon == math.inf
    assert privacy.RDPAccountant().spent(1e-5).epsilon == 0
    for nothing in (privacy.rdp_gaussian(2.0, 0.3, 0), privacy.rdp_gaussian(2.0, 0.0, 5)):
        assert privacy.epsilon_of(nothing, 1e-12).epsilon == 0


@pytest.mark.parametrize(("noise", "rate"), [(0.03, 0.5), (0.02, 0.01), (0.05, 1.0)])
def test_noise_so_small_that_a_release_gives_a_record_away(noise, rate):
    """The losses are almost always those of the record seen, log q p_1 / (1 - q) p_0: known but for their spread."""
    found, delta = numerical_epsilon(noise, rate, 1, 1e-5), 1e-5
    z = stats.norm.isf(delta / rate)  # this far out the density of the record alone has mass delta / q
    assert found == pytest.approx(math.log(rate) + 1 / (2 * noise**2) + z / noise, rel=0.02)


def test_full_batches_as_the_exact_gaussian():
    """The trade-off of the Gaussian mechanism is known in closed form; the numerical accountant meets it."""
    noise, steps, delta = 4.0, 9, 1e-5
    mu = math.sqrt(steps) / noise

    def exact(epsilon):
        return stats.norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * stats.norm.cdf(-epsilon / mu - mu / 2)

    found = numerical_epsilon(noise, 1.0, steps, delta)
    assert exact(found) == pytest.approx(delta, rel=1e-3)
    assert found < privacy.epsilon_of(privacy.rdp_gaussian(noise, 1.0, steps), delta).epsilon


@given(noise=st.floats(0.7, 5.0), rate=st.floats(0.01, 0.9), steps=st.integers(1, 200), more=st.floats(1.05, 2.0))
@settings(max_examples=25, deadline=None)
def test_more_noise_fewer_steps_and_rarer_records_cost_less(noise, rate, steps, more):
    def spent(noise, rate, steps):
        return privacy.epsilon_of(privacy.rdp_gaussian(noise, rate, steps), 1e-5).epsilon

    usual = spent(noise, rate, steps)
    assert spent(noise * more, rate, steps) <= usual
    assert spent(noise, rate / more, steps) <= usual * (1 + 1e-9)
    assert spent(noise, rate, steps + 10) >= usual


def test_history_joins_equal_neighbours_and_adds():
    one, other = privacy.RDPAccountant(), privacy.RDPAccountant()
    for _ in range(3):
        one.step(1.1, 0.1)
    one.step(2.0, 0.1, 4)
    assert one.history == [(1.1, 0.1, 3), (2.0, 0.1, 4)]
    other.step(2.0, 0.1, 4)
    other.step(1.1, 0.1, 3)
    assert one.spent(1e-5).epsilon == pytest.approx(other.spent(1e-5).epsilon, rel=1e-14)


def test_a_budget_is_kept_and_nearly_used():
    noise = privacy.noise_multiplier_for(2.5, 1e-6, 0.2, 60)
    spent = privacy.epsilon_of(privacy.rdp_gaussian(noise, 0.2, 60), 1e-6).epsilon
    assert 2.49 <= spent <= 2.5
    with pytest.raises(ValueError, match="epsilon"):
        privacy.noise_multiplier_for(1e-9, 1e-6, 0.2, 60)


def test_limited_participation_is_the_norm_of_columns():
    momentum, rounds, noise = 0.8, 30, 2.0
    t = np.arange(rounds)
    echo = np.where(t[:, None] >= t, (1 - momentum) * momentum ** np.maximum(t[:, None] - t, 0), 0.0)
    for k, separation in ((1, 1), (3, 7), (5, 1), (2, 29)):
        marks = np.zeros(rounds)
        marks[[i * separation for i in range(k)]] = 1
        want = 6.0 * float(np.sum((echo @ marks) ** 2)) / (2 * noise**2)
        found = privacy.rdp_limited_participation(noise, momentum, rounds, k, separation, [6.0])
        assert found == pytest.approx([want], rel=1e-12)
    once = privacy.rdp_limited_participation(noise, momentum, 10_000, 1, 1, [6.0])[0]
    assert once == pytest.approx(6 * (1 - momentum) / (1 + momentum) / 8, rel=1e-12)
    assert privacy.rdp_limited_participation(0.0, momentum, 3, 1, 1, [6.0]) == [math.inf]


@pytest.mark.parametrize(("k", "separation"), [(1, 1), (3, 7), (5, 1)])
def test_limited_participation_bounds_every_draw_where_norms_fall(k, separation):
    momentum, rounds, noise = 0.8, 30, 2.0
    norms = 1 - 0.7 * np.arange(rounds) / rounds
    t = np.arange(rounds)
    echo = np.where(t[:, None] >= t, (1 - momentum) * momentum ** np.maximum(t[:, None] - t, 0), 0.0)
    echo = echo * norms / norms[:, None]
    ratio = float((norms[:-1] / norms[1:]).max())
    bound = privacy.rdp_limited_participation(noise, momentum, rounds, k, separation, [6.0], ratio)[0]
    generator = np.random.default_rng(0)
    for _ in range(200):
        steps = separation + generator.integers(0, 3, k)
        drawn = generator.integers(0, rounds) + np.cumsum(steps) - steps[0]
        marks = np.zeros(rounds)
        marks[drawn[drawn < rounds]] = 1
        assert 6.0 * float(np.sum((echo @ marks) ** 2)) / (2 * noise**2) <= bound


def test_echoes_are_sums_over_earlier_rounds():
    norms = [3.0, 2.0, 2.5, 0.5]
    want = [sum(0.3 * 0.7 ** (t - s) * norms[s] for s in range(t + 1)) / norms[t] for t in range(4)]
    assert privacy.echoes(0.7, norms) == pytest.approx(want, rel=1e-14)
    assert privacy.echoes(0.0, norms) == [1.0] * 4
    assert privacy.rdp_worst_case(2.0, want, [3.0]) == pytest.approx([3 * sum(w * w for w in want) / 8], rel=1e-14)
    assert privacy.rdp_worst_case(0.0, [], [3.0]) == [0.0]


def test_a_record_in_every_round_costs_at_most_the_worst_case():
    for momentum in (0.0, 0.5, 0.9):
        often = privacy.rdp_limited_participation(2.0, momentum, 40, 40, 1, [5.0])[0]
        assert often <= privacy.rdp_worst_case(2.0, [1.0] * 40, [5.0])[0] * (1 + 1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: privacy.rdp_gaussian(-1.0, 0.1), "noise_multiplier"),
        (lambda: privacy.rdp_gaussian(math.nan, 0.1), "noise_multiplier"),
        (lambda: privacy.rdp_gaussian(1.0, 1.1), "sample_rate"),
        (lambda: privacy.rdp_gaussian(1.0, 0.1, -1), "steps"),
        (lambda: privacy.rdp_gaussian(1.0, 0.1, 1, [1.0]), "orders"),
        (lambda: privacy.epsilon_of([1.0], 0.0, [2.0]), "delta"),
        (lambda: privacy.epsilon_of([1.0], 1.0, [2.0]), "delta"),
        (lambda: privacy.epsilon_of([1.0, 2.0], 0.1, [2.0]), "rdp"),
        (lambda: privacy.noise_multiplier_for(0.0, 1e-5, 0.1, 10), "epsilon"),
        (lambda: privacy.noise_multiplier_for(-1.0, 1e-5, 0.1, 10), "epsilon"),
        (lambda: privacy.noise_multiplier_for(1.0, 2.0, 0.1, 10), "delta"),
        (lambda: privacy.rdp_limited_participation(1.0, 1.0, 5, 1, 1), "momentum"),
        (lambda: privacy.rdp_limited_participation(1.0, 0.5, 5, 0, 1), "participations"),
        (lambda: privacy.rdp_limited_participation(1.0, 0.5, 5, 1, 0), "separation"),
        (lambda: privacy.rdp_limited_participation(1.0, 0.5, 5, 1, 1, norm_ratio=2.0), "norm_ratio"),
        (lambda: privacy.rdp_limited_participation(1.0, 0.5, 5, 1, 1, norm_ratio=0.9), "norm_ratio"),
        (lambda: privacy.echoes(1.0, [1.0]), "momentum"),
        (lambda: privacy.echoes(0.5, [1.0, 0.0]), "norms"),
        (lambda: privacy.rdp_worst_case(-1.0, [1.0]), "noise_multiplier"),
        (lambda: privacy.RDPAccountant().step(1.0, 0.1, 0), "steps"),
        (lambda: numerical_epsilon(0.0, 0.1, 1, 1e-5), "noise_multiplier"),
        (lambda: numerical_epsilon(1.0, 0.1, 1, 1.0), "delta"),
    ],
)
def test_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_opacus_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(ImportError, match=r"polyak\[federated\]"):
        privacy.prv_epsilon(1.0, 0.1, 10, 1e-5)
