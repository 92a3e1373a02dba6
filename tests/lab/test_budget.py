"""How many runs fit a time, and how many more seeds are worth having."""

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
    def record(steps, **detail):
        return SimpleNamespace(steps=steps, detail=detail)

    assert budget.whole_run(record(100, timing={"seconds": 3.0}, train=[[50, 1.0], [100, 1.0]])) == 3.0
    assert budget.whole_run(record(100, timing={"seconds": 3.0}, train=[[50, 1.0]])) == 6.0
    assert budget.whole_run(record(100, error="it failed")) is None


def judged(problem, **calls):
    rows = [SimpleNamespace(method=m, call=call, more_seeds=more) for m, (call, more) in calls.items()]
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
