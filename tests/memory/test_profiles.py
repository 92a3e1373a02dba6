import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyak.memory import ema, gamma_of_sigma_rel, posthoc_weights, power_beta, sigma_rel_of_gamma


@given(st.floats(0.0, 1e6))
def test_width_and_back(gamma):
    assert gamma_of_sigma_rel(sigma_rel_of_gamma(gamma)) == pytest.approx(gamma, rel=1e-9, abs=1e-9)


@given(st.floats(1e-6, 0.2886))
def test_width_falls_with_the_exponent(sigma_rel):
    assert gamma_of_sigma_rel(sigma_rel) > gamma_of_sigma_rel(sigma_rel * 1.0002) >= 0.0


def test_plain_mean_is_the_widest():
    assert gamma_of_sigma_rel(12.0**-0.5) == pytest.approx(0.0, abs=1e-12)


@given(st.floats(0.0, 20.0))
def test_width_is_the_standard_deviation_of_the_profile(gamma):
    tau = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    weight = tau**gamma / (tau**gamma).sum()
    mean = (weight * tau).sum()
    assert ((weight * (tau - mean) ** 2).sum().sqrt().item()) == pytest.approx(sigma_rel_of_gamma(gamma), rel=1e-4)


@given(st.integers(0, 5), st.booleans())
def test_a_stored_average_is_rebuilt_from_itself(index, normalise):
    t, sigma_rel = [10.0, 10.0, 20.0, 20.0, 30.0, 30.0], [0.05, 0.1] * 3
    weights = posthoc_weights(t, sigma_rel, t[index], sigma_rel[index], normalise=normalise)
    torch.testing.assert_close(weights, torch.eye(6, dtype=torch.float64)[index], rtol=0, atol=1e-9)


def test_shapes_follow_the_targets():
    assert posthoc_weights([1.0, 2.0], [0.1, 0.1], 2.0, 0.05).shape == (2,)
    assert posthoc_weights([1.0, 2.0], [0.1, 0.1], torch.tensor(2.0), torch.tensor(0.05)).shape == (2,)
    assert posthoc_weights([1.0, 2.0], [0.1, 0.1], [2.0], [0.05]).shape == (2, 1)


def test_rebuilt_average_is_the_one_tracked_directly():
    widths, steps, wanted = (0.05, 0.1), 800, 0.07
    walk = torch.randn(steps, 64, dtype=torch.float64).cumsum(0)
    averages = {width: torch.zeros(64, dtype=torch.float64) for width in (*widths, wanted)}
    t, sigma_rel, stored = [], [], []
    for step, online in enumerate(walk, start=1):
        for width, average in averages.items():
            averages[width] = ema(average, online, 1.0 - power_beta(step, gamma_of_sigma_rel(width)))
        if step % 100 == 0:
            t += [float(step)] * len(widths)
            sigma_rel += widths
            stored += [averages[width] for width in widths]
    rebuilt = posthoc_weights(t, sigma_rel, float(steps), wanted) @ torch.stack(stored)
    assert (rebuilt - averages[wanted]).norm() < 1e-2 * averages[wanted].norm()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gamma_of_sigma_rel(0.3), r"sigma_rel must be in \(0, 0.2886\d+\], got 0.3"),
        (lambda: gamma_of_sigma_rel(0.0), "sigma_rel must be in"),
        (lambda: sigma_rel_of_gamma(-1.0), "gamma must be greater than -1, got -1.0"),
        (lambda: posthoc_weights([1.0, 2.0], [0.1], 2.0, 0.1), "sigma_rel must be as many as t, 2, got"),
        (lambda: posthoc_weights([1.0, 0.0], [0.1, 0.1], 1.0, 0.1), "t must be greater than 0, got"),
        (lambda: posthoc_weights([], [], 1.0, 0.1), r"t must be at least one time, got \[\]"),
        (lambda: posthoc_weights([1.0, 1.0], [0.1, 0.1], 1.0, 0.1), r"\(t, sigma_rel\) must be free of repetitions"),
        (
            lambda: posthoc_weights([1.0, 2.0], [0.1, 0.1], 3.0, 0.1),
            r"t_out must be at most max\(t\) = 2.0, got \[3.0\]",
        ),
    ],
)
def test_errors_name_argument_value_and_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
