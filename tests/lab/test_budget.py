"""How many runs fit a time, and how many more seeds are worth having."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from polyak.lab import budget
from polyak.lab.errors import BadInput
from tests.lab.conftest import campaign_of, quadratic


@pytest.mark.parametrize(("text", "found"), [("90s", 90), ("30m", 1800), ("2h", 7200), (" 1.5h ", 5400)])
def test_times(text, found):
    assert budget.seconds(text) == found


@pytest.mark.parametrize("text", ["", "30", "m", "0s", "-3m", "nanh", "infh", "3 days"])
def test_what_is_no_time(text):
    with pytest.raises(BadInput, match=r"budget must be a time such as 90s, 30m or 2h, got"):
        budget.seconds(text)


def test_counts_fit_the_time_and_grow_with_it():
    before = budget.Counts(0, 0)
    for minutes in (3, 10, 30, 60, 120, 600):
        found = budget.counts(60 * minutes, [2.0, 4.0], workers=2)
        cost = found.rounds * 6.0 / 2
        assert cost <= 60 * minutes and found.trials >= before.trials and found.seeds >= before.seeds
        assert found.seeds == budget.MOST_SEEDS or cost > 0.85 * 60 * minutes
        before = found
    assert (before.trials, before.seeds) == (budget.MOST_TRIALS, budget.MOST_SEEDS)


def test_more_workers_do_more_as_far_as_there_is_something_to_do():
    one, two, many = (budget.counts(300, [5.0], workers=n).rounds for n in (1, 2, 64))
    assert two > 1.9 * one and many == budget.counts(300, [5.0], workers=3).rounds


def test_a_budget_that_is_too_small_says_what_is_needed():
    with pytest.raises(BadInput, match=r"a budget of 10 s is too small: 4 trials and 3 seeds .* about 78 s"):
        budget.counts(10, [10.0], workers=1)


def test_the_time_of_a_whole_run():
    def record(status, steps, **detail):
        return SimpleNamespace(status=status, steps=steps, detail=detail)

    timing = {"total_seconds": 3.0}
    assert budget.whole_run(record("finished", 100, timing=timing)) == 3.0
    assert budget.whole_run(record("diverged", 100, timing=timing, step=50)) == 6.0
    assert budget.whole_run(record("diverged", None, timing=timing, step=50)) == 3.0
    assert budget.whole_run(record("diverged", 100, timing=timing, step=0)) == 3.0
    assert budget.whole_run(record("failed", 100, error="it failed")) is None


def test_the_estimate_is_by_the_looks():
    campaign = campaign_of(quadratic(), quadratic(name="other"), trials=3, seeds=2)
    assert budget.estimate(campaign, 2)[0].startswith("quadratic: 10 runs; how long one takes is not known")
    known = [
        replace(loaded, seconds_per_run=seconds) for loaded, seconds in zip(campaign.problems, (2.14, 66), strict=True)
    ]
    assert budget.estimate(campaign.with_problems(known), 2) == [
        "quadratic: 2.1 s a run, 10 runs, about 15 s on 2 workers",
        "other: 66 s a run, 10 runs, about 6 min on 2 workers",
        "all: about 6 min",
    ]
    assert budget.estimate(campaign.with_problems(known[:1]), 1) == [
        "quadratic: 2.1 s a run, 10 runs, about 25 s on 1 worker"
    ]


def judged(problem, **calls):
    rows = [SimpleNamespace(method=m, call=call, seeds=5, more_seeds=more) for m, (call, more) in calls.items()]
    return SimpleNamespace(problem=problem, judgements=rows)


def test_seeds_go_where_they_decide():
    campaign = campaign_of(quadratic(), methods=("sgd", "adamw", "lion", "adan"), seeds=5)
    verdict = judged("quadratic", adamw=("unsettled", 3), lion=("better", None), adan=("unsettled", 40))
    more = budget.more_seeds([verdict], campaign, cap=30)
    assert more == {("quadratic", "adamw"): 8, ("quadratic", "adan"): 10, ("quadratic", "sgd"): 10}
    further = budget.more_seeds([judged("quadratic", adan=("unsettled", 40))], campaign.with_seeds(more), cap=12)
    assert further == {("quadratic", "adan"): 12, ("quadratic", "sgd"): 12}
    assert budget.more_seeds([judged("quadratic", adan=("unsettled", 40))], campaign.with_seeds(further), cap=12) == {}
    assert budget.more_seeds([judged("quadratic", lion=("unsettled", None))], campaign, cap=30) == {}
