"""Intervals, tests and levels by value."""

import math

import numpy as np
import pytest
from scipy import stats

from polyak.lab.evidence import Trial
from polyak.lab.intervals import DEGREES, Diverged, Levels, Paired, examples_error
from polyak.lab.judging import holm
from polyak.lab.tuning import tuning_error
from tests.lab.test_evidence import trials

DIFFERENCES = (0.3, 0.1, 0.4, 0.2, 0.25)
ALIKE = Levels(0.05, 0.05)


def test_without_tuning_the_interval_is_the_paired_t_test():
    expected = stats.ttest_rel(DIFFERENCES, [0.0] * 5)
    found = Paired(DIFFERENCES)
    assert found.difference == pytest.approx(0.25)
    assert found.interval(0.05) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p_value() == pytest.approx(expected.pvalue, rel=1e-3)
    assert found.decide(ALIKE, 0.1) == ("better", 0.05)
    assert Paired([-d for d in DIFFERENCES]).decide(ALIKE, 0.1) == ("worse", 0.05)


def test_half_widths_add_in_quadrature_each_at_its_own_quantile():
    seeds = stats.t.ppf(0.975, 4) * np.std(DIFFERENCES, ddof=1) / math.sqrt(5)
    expected = math.hypot(seeds, stats.t.ppf(0.975, DEGREES) * 0.1, stats.norm.ppf(0.975) * 0.05)
    assert float(Paired(DIFFERENCES, 0.1, 0.05).half_width(0.05)) == pytest.approx(expected)


def test_the_p_value_is_where_the_interval_ends_at_zero():
    found = Paired(DIFFERENCES, tuning=0.05, examples=0.02)
    low, _ = found.interval(found.p_value())
    assert low == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    ("differences", "margin", "call"),
    [
        ([0.1, 0.11, 0.09, 0.1, 0.1], 0.2, "equivalent"),  # certain, but smaller than what matters
        ([0.1, 0.11, 0.09, 0.1, 0.1], 0.05, "better"),
        ([0.1, -0.1, 0.05, -0.05, 0.0], 0.2, "equivalent"),
        ([0.1, -0.1, 0.05, -0.05, 0.0], 0.05, "unsettled"),
        ([0.0, 0.0, 0.0], 0.0, "equivalent"),
        ([0.2] * 6, 0.0, "better"),  # 2 ** -5 is below .05, 2 ** -4 is not
        ([0.2] * 5, 0.0, "unsettled"),
        ([1 / 360] * 2, 0.0, "unsettled"),  # one image more, on two seeds
        ([-1 / 360] * 6, 0.0, "worse"),
        ([0.25] * 6, 0.25, "equivalent"),
        ([0.25] * 3, 0.25, "unsettled"),
        ([0.25] * 3, 0.5, "equivalent"),
        ([5.0], 0.1, "unsettled"),
        ([], 0.1, "unsettled"),
    ],
)
def test_three_ways_and_a_margin(differences, margin, call):
    assert Paired(differences).decide(ALIKE, margin) == (call, 0.05)


def test_a_spread_of_rounding_is_none():
    assert Paired([0.1 + 0.2 - 0.3 + 0.7, *[0.7] * 5]).interval(0.05) == pytest.approx((0.7, 0.7), abs=1e-12)
    assert Paired([0.1 + 0.2 - 0.3 + 0.7, 0.7, 0.7]).interval(0.05) == pytest.approx((0.0, 1.4), abs=1e-12)


def test_equal_differences_are_judged_by_their_signs():
    found = Paired([0.2] * 4)
    assert found.p_value() == pytest.approx(2**-3)
    assert (found.p_equivalence(0.5), found.p_equivalence(0.1)) == (1e-9, 1.0)
    assert found.p_equivalence(0.3) == pytest.approx(2**-3, rel=1e-3)
    assert found.more_seeds(ALIKE, 0.0) == 2
    assert Paired([0.2] * 4, tuning=1.0).p_value() > 0.5


def test_the_p_value_of_equivalence_is_where_the_interval_ends_at_the_margin():
    found = Paired(DIFFERENCES, tuning=0.05, examples=0.02)
    assert found.interval(found.p_equivalence(0.6))[1] == pytest.approx(0.6, abs=1e-4)
    assert found.p_equivalence(0.2) == 1.0
    assert Paired([0.1]).p_equivalence(1.0) == Paired([]).p_equivalence(1.0) == 1.0


def test_each_call_is_shown_at_its_own_level():
    found = Paired(DIFFERENCES)  # from .13 to .39 at .05, from -.03 to .53 at .002
    assert found.decide(Levels(0.05, 0.002), 0.3) == ("better", 0.05)
    assert found.decide(Levels(0.002, 0.05), 0.3) == ("unsettled", 0.002)
    assert found.decide(Levels(0.002, 0.05), 0.45) == ("equivalent", 0.05)
    # Within the margin at .05, but not at the level of equivalence, where it leaves out 0 or does not.
    assert found.decide(Levels(0.05, 0.01), 0.45) == ("better", 0.01)
    assert found.decide(Levels(0.05, 0.002), 0.45) == ("unsettled", 0.002)


def test_more_seeds_settle_what_they_say():
    found = Paired([0.3, -0.1, 0.2, 0.1, -0.2])
    more = found.more_seeds(ALIKE, 0.0)
    size = abs(found.difference)
    assert float(found.half_width(0.05, 5 + more)) < size <= float(found.half_width(0.05, 5 + more - 1))
    near = Paired([0.3, -0.3, 0.2, 0.1, -0.3])  # nothing to tell apart: the margin is what settles it
    more = near.more_seeds(ALIKE, 0.1)
    assert abs(near.difference) + float(near.half_width(0.05, 5 + more)) <= 0.1
    assert Paired([0.3, -0.1, 0.2], tuning=1.0).more_seeds(ALIKE, 0.0) is None
    assert Paired([0.3]).more_seeds(ALIKE, 0.0) == 4
    assert Paired([]).more_seeds(ALIKE, 0.0) == 5


INF = -math.inf
RISING = [1.0, 2.0, 3.0, 4.0, 5.0]


def diverged(method, reference):
    pairs = [(a, b) for a, b in zip(method, reference, strict=True) if math.isfinite(a) and math.isfinite(b)]
    return Diverged(method, reference, Paired([a - b for a, b in pairs]))


@pytest.mark.parametrize(
    ("method", "reference", "margin", "call"),
    [
        ([INF] * 5, RISING, 10.0, "worse"),
        (RISING, [INF] * 5, 10.0, "better"),
        ([INF] * 2, [1.0, 2.0], 10.0, "unsettled"),
        ([INF] * 8, [INF] * 8, 10.0, "unsettled"),
        ([INF], [1.0], 10.0, "unsettled"),
        # All other runs are better, but one diverged.
        ([INF, *[9.0] * 9], [1.0] * 10, 0.1, "unsettled"),
        # All other runs are worse, and one diverged: so much as the others matter.
        ([INF, *[0.0] * 9], [1.0] * 10, 0.1, "worse"),
        ([INF, *[0.0] * 9], [1.0] * 10, 1.0, "unsettled"),
        ([*[0.0] * 9, INF], [INF, *[1.0] * 9], 0.1, "worse"),
        # One diverged run is no reason, whatever ranks say.
        ([1.0] * 10, [INF, *[1.0] * 9], 0.1, "unsettled"),
        # Many are, but not where the other half says the opposite.
        ([*[INF] * 6, *[1.0] * 4], [1.0] * 10, 0.1, "worse"),
        ([*[INF] * 8, *[9.0] * 8], [1.0] * 16, 0.1, "unsettled"),
        ([*[INF] * 8, *[1.1] * 8], [1.0] * 16, 0.5, "worse"),
    ],
)
def test_diverged_runs_are_compared_by_how_many_and_by_the_others(method, reference, margin, call):
    found = diverged(method, reference)
    assert found.decide(ALIKE, margin)[0] == call
    assert found.interval(0.05) is None and found.p_equivalence(10.0) == 1.0
    assert found.difference is None or math.isfinite(found.difference)


def test_losses_tell_how_many_more():
    assert diverged([INF] * 2, [1.0, 2.0]).more_seeds(ALIKE, 0.0) == 2  # 4 of 4 are enough, 3 of 3 are not
    assert diverged([INF] * 2, [INF] * 2).more_seeds(ALIKE, 0.0) is None
    assert diverged([INF, *[9.0] * 9], [1.0] * 10).more_seeds(ALIKE, 0.0) is None
    assert diverged([INF, 1.0, 2.0], [1.0, 2.0, 3.0]).difference == -1.0
    assert diverged([INF, *[0.0] * 3], [1.0] * 4).more_seeds(ALIKE, 0.1) == 4  # by 7 equal others: 2 ** -6 < .025


@pytest.mark.parametrize(("ours", "theirs", "seeds"), [(5, 0, 5), (4, 1, 6), (2, 2, 7), (0, 3, 8)])
def test_the_test_of_losses_is_fishers(ours, theirs, seeds):
    expected = stats.fisher_exact([[ours, seeds - ours], [theirs, seeds - theirs]]).pvalue
    found = Diverged([INF] * ours + [1.0] * (seeds - ours), [INF] * theirs + [1.0] * (seeds - theirs), Paired([]))
    assert found.p_value() == pytest.approx(expected)


def test_holm_by_hand():
    # .04 / 4 holds .001, .04 / 3 holds .013, .04 / 2 does not hold .03; the rest shares that level.
    levels = holm({"a": 0.03, "b": 0.001, "c": 0.5, "d": 0.013}, 0.04)
    assert levels == pytest.approx({"b": 0.01, "d": 0.04 / 3, "a": 0.02, "c": 0.02})
    assert holm({}, 0.05) == {}


def test_the_examples_part_is_what_seeds_do_not_show():
    examples = np.random.default_rng(0).normal(size=200)
    constant = np.tile(examples, (5, 1))  # each example differs by the same on every seed
    assert examples_error(constant) == pytest.approx(examples.std(ddof=1) / math.sqrt(200))
    noise = np.random.default_rng(1).normal(size=(50, 2000))  # examples have nothing of their own
    assert examples_error(noise) < 0.5 / math.sqrt(50 * 2000)
    assert examples_error(np.ones((3, 1))) == 0.0


def test_tuning_of_one_setting_has_no_spread():
    assert tuning_error(trials((1.0, 2.0, 3.0)), True, 1.0) == 0.0
    assert tuning_error(trials(None, 1.0), True, 1.0) == 0.0
    assert tuning_error([], True, 1.0) == 0.0


def test_tuning_without_noise_is_the_spread_of_the_best_of_a_half():
    # Of the 6 halves of 4 trials the best is the first in 3, the second in 2, the third in 1.
    expected = np.std([4.0, 4.0, 4.0, 2.0, 2.0, 1.0])
    for values in ([4.0, 1.0, 0.0, 2.0], [-4.0, -1.0, 0.0, -2.0]):
        assert tuning_error(trials(*values), values[0] > 0, 0.0) == pytest.approx(expected)


def at(values, places, name="lr"):
    return [Trial({name: place}, (value,)) for value, place in zip(values, places, strict=True)]


def test_a_bad_part_of_the_range_is_no_luck():
    # Of ten trials three neighbours are equally good: every even half has one of them, every twelfth of all has none.
    values, rates = (
        [-900.0, -800.0, -500.0, -300.0, -90.0, -50.0, -20.0, 5.0, 5.0, 5.0],
        [10.0 ** (i / 3) for i in range(10)],
    )
    assert tuning_error(at(values, rates), True, 0.0) == 0.0
    assert tuning_error(trials(*values), True, 0.0) > 5.0
    # Where they lie apart, and the order of the trials, make no difference.
    shuffled = [7, 2, 9, 0, 5, 1, 8, 3, 6, 4]
    moved = at([values[i] for i in shuffled], [i**3 for i in shuffled])
    assert tuning_error(moved, True, 0.0) == 0.0


def test_an_optimum_that_stands_out_is_luck():
    sharp = [float(-10 * abs(i - 6)) for i in range(10)]
    found = tuning_error(at(sharp, range(10)), True, 0.0)
    assert 4.0 < found <= 10.0  # half of the halves have it, the others a neighbour
    assert tuning_error(at([min(value, -10.0) for value in sharp], range(10)), True, 0.0) < found


def test_choices_are_told_apart_and_what_does_not_vary_is_not():
    values, places = [0.0, 0.0, -50.0, -50.0, 0.0, 0.0, -50.0, -50.0], [("a", 1), ("a", 1), ("b", 2), ("b", 2)] * 2
    assert tuning_error(at(values, places), True, 0.0) == 0.0
    assert tuning_error(at(values, [0.9] * 8), True, 0.0) == tuning_error(trials(*values), True, 0.0) > 0


def test_of_many_trials_some_halves_are_looked_at():
    values = [float(-abs(i - 11)) for i in range(30)]
    found = tuning_error(at(values, range(30)), True, 0.0)
    assert 0 < found == tuning_error(at(values, range(30)), True, 0.0) < 2


def test_tuning_is_measured_in_units_of_the_metric():
    rows = [(5.0, 4.0, 4.5), (4.0, 4.4, 4.0), (3.0, 4.0, 3.0), 2.0, 1.0, None]
    scaled = [None if row is None else tuple(100 * x + 7 for x in (row if isinstance(row, tuple) else (row,)))
              for row in rows]  # fmt: skip
    once = tuning_error(trials(*rows), True, 0.0)
    assert once > 0
    assert tuning_error(trials(*scaled), True, 0.0) == pytest.approx(100 * once)


def test_tuning_that_noise_explains_counts_less():
    close = [(1.0, 0.0, 0.5), (0.9, 0.6, 0.1), (0.8, 0.1, 0.9), 0.7, 0.6, 0.5]
    apart = [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 0.1, 0.0, -0.5]
    assert tuning_error(trials(*close), True, 0.0) < tuning_error(trials(*apart), True, 0.0)
