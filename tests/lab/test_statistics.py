"""Statistics by value."""

import math

import pytest

from polyak.lab.statistics import median, order_interval, performance_profile


def test_median():
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5
    assert median([math.inf, 1.0, math.inf]) == math.inf
    assert median([math.inf, math.inf, 1.0, 1.0]) == math.inf


@pytest.mark.parametrize(
    ("count", "low", "high", "coverage"),
    [
        (1, 0, 0, 0.0),
        (2, 0, 1, 0.5),
        (5, 0, 4, 0.9375),
        (6, 0, 5, 1 - 2 / 64),  # the first with 95 %
        (9, 1, 7, 1 - 2 * (1 + 9) / 512),
        (20, 5, 14, 0.958611),  # 6th and 15th: the textbook interval of a sign test
    ],
)
def test_order_interval(count, low, high, coverage):
    interval = order_interval([float(i) for i in reversed(range(count))])
    assert (interval.low, interval.high) == (low, high)
    assert interval.coverage == pytest.approx(coverage, abs=1e-6)


def test_diverged_runs_widen_the_interval_to_infinity():
    interval = order_interval([1.0, 2.0, 3.0, math.inf, math.inf])
    assert (interval.median, interval.low, interval.high) == (3.0, 1.0, math.inf)


def test_performance_profile():
    profile = performance_profile({"a": [10, 20, math.inf], "b": [20, 10, 30], "c": [math.inf] * 3})
    assert profile["a"] == [(1.0, 1 / 3), (2.0, 2 / 3)]
    assert profile["b"] == [(1.0, 2 / 3), (2.0, 1.0)]
    assert profile["c"] == [(1.0, 0.0)]
