"""Statistics by value."""

import math

import pytest

from polyak.lab.statistics import (
    median,
    performance_profile,
    profile_score,
    time_to_target,
)


def test_median():
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5
    assert median([math.inf, 1.0, math.inf]) == math.inf
    assert median([math.inf, math.inf, 1.0, 1.0]) == math.inf


def test_performance_profile():
    profile = performance_profile({"a": [10, 20, math.inf], "b": [20, 10, 30], "c": [math.inf] * 3})
    assert profile["a"] == [(1.0, 1 / 3), (2.0, 2 / 3)]
    assert profile["b"] == [(1.0, 2 / 3), (2.0, 1.0)]
    assert profile["c"] == [(1.0, 0.0)]


def test_a_problem_that_nobody_solved_counts():
    profile = performance_profile({"a": [10, math.inf], "b": [20, math.inf]})
    assert profile == {"a": [(1.0, 0.5)], "b": [(1.0, 0.0), (2.0, 0.5)]}


def test_a_cost_of_nothing():
    profile = performance_profile({"a": [0, 10], "b": [5, 5]})
    assert profile == {"a": [(1.0, 0.5), (2.0, 1.0)], "b": [(1.0, 0.5)]}


def test_profile_score_by_hand():
    # Half of the problems at once, the other half from 2 on: (1 * 1/2 + 2 * 1) / 3.
    assert profile_score([(1.0, 0.5), (2.0, 1.0)]) == pytest.approx(2.5 / 3)
    assert profile_score([(1.0, 0.0), (3.0, 0.5), (9.0, 1.0)]) == pytest.approx(0.5 / 3)
    assert profile_score([(1.0, 1.0)]) == pytest.approx(1.0)
    assert profile_score([(1.0, 0.0)]) == 0.0
    assert profile_score([(1.0, 0.0), (3.0, 0.5)], largest=5.0) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("times", "median_time"),
    [
        ([70, 74, 72], 72),
        ([70, None, 72, None, 71], 72),
        ([70, None, None, None, 71], math.inf),
        ([70, 72, None, None], math.inf),
        ([70, 72, 74, None], 73),
        ([], math.inf),
    ],
)
def test_time_to_target(times, median_time):
    assert time_to_target(times) == median_time
