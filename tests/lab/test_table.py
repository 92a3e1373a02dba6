"""The words of tables."""

from dataclasses import replace

import pytest

from polyak.lab import table
from polyak.lab.report import summarize
from tests.lab import synthetic


@pytest.fixture(scope="module")
def problem():
    described = synthetic.described(3)
    return summarize([described], synthetic.records(described, lost=False)).problems[0]


def column(problem, heading):
    return next(c for c in (*table.results(problem), *table.costs(problem)) if c.heading.startswith(heading))


def test_who_meets_the_target_on_fewer_seeds_is_never_best(problem):
    often, seldom, _ = problem.methods
    some = [replace(often, reached=5, target_step=88.0), replace(seldom, reached=3, target_step=72.0)]
    steps = column(problem, "steps to target")
    assert steps.best(some) == {often.method}
    assert [steps.text(m) for m in some] == ["88", "72 (3/5)"]
    equal = [replace(often, reached=5, target_step=88.0), replace(seldom, reached=5, target_step=72.0)]
    assert steps.best(equal) == {seldom.method}
    never = replace(often, method="never", reached=0, target_step=None)
    both = replace(often, method="both", reached=5, target_step=72.0)
    assert steps.best([*equal, never, both]) == {seldom.method, "both"}


def test_a_column_without_a_contest_marks_nobody(problem):
    assert column(problem, "compile").best(problem.methods) == set()
    same = [replace(m, state_bytes_per_parameter=8.0) for m in problem.methods]
    assert column(problem, "state").best(same) == set()


def test_the_difference_names_its_reference_and_its_interval(problem):
    differs = column(problem, "difference to adamw")
    texts = {m.method: differs.text(m) for m in problem.methods}
    assert texts["adamw"] == "reference"
    assert texts["sgd"].startswith(("+", "-")) and texts["sgd"].endswith("]")


def test_calls(problem):
    method = next(m for m in problem.methods if m.judgement)
    unsettled = replace(method, judgement=replace(method.judgement, call="unsettled", more_seeds=12))
    assert table.call(unsettled) == "unsettled: about 12 more seeds"
    lost = replace(unsettled, judgement=replace(unsettled.judgement, more_seeds=None))
    assert table.call(lost) == "unsettled"
    assert table.call(replace(method, judgement=None)) == "–"


def test_diverged_runs_are_counted_beside_the_seeds(problem):
    method = replace(problem.methods[0], metrics={1: 0.9, 2: None, 3: 0.8}, high=None)
    assert column(problem, "seeds").text(method) == "2 of 3"
    assert column(problem, "test").text(method).endswith("diverged]")


def test_chosen_settings_say_what_tuning_saw(problem):
    rows = {name: (setting, seen) for name, setting, seen in table.chosen(problem)}
    setting, seen = rows["sgd"]
    assert "lr=" in setting and "betas=(0." in setting
    assert seen.count(",") == 2


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 4, "–"),
        (0.98333, 4, "0.9833"),
        (200, 4, "200"),
        (12345, 4, "12345"),
        (4.5e-6, 3, "4.5e-06"),
        (0.0, 4, "0"),
    ],
)
def test_number(value, digits, text):
    assert table.number(value, digits) == text


def test_a_method_without_a_result_says_why():
    described = synthetic.described(2)
    records = synthetic.records(described, lost=False)
    trials = {key: r for key, r in records.items() if r.split == "validation"}
    ends = {
        "pending": trials,
        "diverged": {key: replace(r, status="diverged", metric=None, detail={}) for key, r in trials.items()},
        "failed": {
            key: replace(r, status="failed", metric=None, detail={}) if r.split == "test" else r
            for key, r in records.items()
        },
    }
    for word, made in ends.items():
        problem = summarize([described], made).problems[0]
        assert [table.results(problem)[0].text(method) for method in problem.methods] == [word] * 2
    empty = summarize([described], {}).problems[0]
    assert [table.results(empty)[0].text(method) for method in empty.methods] == ["pending"] * 2
