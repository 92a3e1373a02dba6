"""Which setting is chosen, what a budget buys, and what is warned of."""

import math

import pytest

from polyak.declare import Range
from polyak.lab.evidence import Evidence, Trial, evidence_warnings, expected_validation, ranking


def trials(*validations, settings=None):
    rows = [one if isinstance(one, tuple) else (one,) for one in validations]
    return [Trial(setting, row) for setting, row in zip(settings or [{}] * len(rows), rows, strict=True)]


@pytest.mark.parametrize(
    ("validations", "higher", "lower"),
    [
        ([0.1, 0.3, 0.2], 1, 0),
        ([0.2, 0.2], 0, 0),  # of equals the first
        # One lucky seed does not beat what was run again, although .9 is the largest value of all.
        ([0.9, (0.8, 0.7, 0.6), (0.7, 0.8, 0.75)], 2, 1),
        ([None, 0.3, None], 1, 1),
        # A setting that diverged on a seed comes after all that never did.
        ([(0.9, None, 0.9), (0.5, 0.4, 0.6), 0.3], 1, 1),
        ([(0.9, None), (0.8, None), 0.3], 2, 2),
        ([(0.9, None, None), (0.8, 0.7, None)], 1, 1),
        ([None, math.nan, -math.inf], None, None),
        ([], None, None),
    ],
)
def test_the_first_of_a_ranking(validations, higher, lower):
    assert next(iter(ranking(trials(*validations), True)), None) == higher
    assert next(iter(ranking(trials(*validations), False)), None) == lower


def test_expected_validation_by_hand():
    # Of 1, 2, 3 two draws give the best 1 with chance 1/9, 2 with 3/9, 3 with 5/9.
    assert expected_validation(trials(2.0, 1.0, 3.0), 2, True) == pytest.approx((1 + 2 * 3 + 3 * 5) / 9)
    assert expected_validation(trials(2.0, 1.0, 3.0), 2, False) == pytest.approx((3 + 2 * 3 + 1 * 5) / 9)
    assert expected_validation(trials(2.0, 1.0, 3.0), 1, True) == pytest.approx(2.0)
    assert expected_validation(trials(2.0, 1.0, 3.0), 500, True) == pytest.approx(3.0)


def test_expected_validation_looks_at_the_first_seed_and_at_finished_trials():
    assert expected_validation(trials((2.0, 9.0), 1.0), 1, True) == pytest.approx(1.5)
    # Of None, 1, 2 two draws give nothing with chance 1/9, 1 with 3/9, 2 with 5/9.
    assert expected_validation(trials(None, 1.0, 2.0), 2, True) == pytest.approx((3 + 2 * 5) / 8)
    assert expected_validation(trials(None, None), 2, True) is None
    assert expected_validation([], 2, True) is None
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        expected_validation(trials(1.0), 0, True)


@pytest.mark.parametrize(
    ("value", "bounds", "end"),
    [
        (0.08, (0.001, 0.1, True), "upper"),
        (0.001, (0.001, 0.1, True), "lower"),
        (0.01, (0.001, 0.1, True), None),
        (0.01, (0.001, 0.1, False), "lower"),
        (0.05, (0.001, 0.1, False), None),
        (0.0, (0.001, 0.1, True), None),  # a published default outside the range that was searched
        ("cosine", (0.001, 0.1, True), None),
        (True, (0, 1, False), None),
    ],
)
def test_a_setting_at_the_edge_of_its_range_is_warned_of(value, bounds, end):
    evidence = Evidence("m", tuple(trials(1.0, settings=[{"lr": value}])), {})
    warnings = evidence_warnings(evidence, True, {"lr": Range(*bounds), "absent": Range(*bounds)})
    assert [f"at the {end} end of its range, 0.001 to 0.1" in warning for warning in warnings] == [True] * bool(end)


@pytest.mark.parametrize(
    ("validations", "warning"),
    [
        ([2.0], None),
        ([2.0, 1.0], "its only tuning seed"),
        ([(3.0, 1.0, 1.0), (1.0, 1.5, 1.5)], "1 of 3 tuning seeds"),
        ([(3.0, 2.0, 1.0), (1.0, 1.5, 1.5)], None),
        ([(1.0, 1.0), (1.0, 1.0)], "0 of 2 tuning seeds"),
    ],
)
def test_a_lead_of_one_tuning_seed_is_warned_of(validations, warning):
    warnings = evidence_warnings(Evidence("m", tuple(trials(*validations)), {}), True, {})
    assert warnings == ([f"the chosen setting is ahead of the second best on {warning}"] if warning else [])


def test_what_diverged_is_warned_of():
    evidence = Evidence("m", tuple(trials(None, None)), {1: None, 2: 1.0, 3: math.nan})
    assert evidence_warnings(evidence, True, {}) == ["every trial diverged", "diverged on 2 of 3 seeds"]
