"""One method under several names: tuned apart, judged alike, and told as a test of the lab."""

import random

import pytest
from torch import nn

from polyak.lab import BadInput, Problem, compare, plan
from polyak.lab.entries import entries, twins
from polyak.lab.history import restore
from polyak.lab.html import render
from polyak.lab.report import summarize
from polyak.lab.store import Store
from tests.lab.conftest import quadratic
from tests.lab.test_terminal import printed


def compared(tmp_path, problem=None, names=2, **more):
    return compare(problem or quadratic(), "adamw", self_test=names, store=tmp_path / "runs.db", **more).report


def told_apart(by=5.0):
    """A problem that favours one of the two names, by the settings that only the other's trials have."""
    lucky = plan(quadratic(), "adamw", 5, self_test=2).tried["adamw (2)"][1:]

    def train(make_optimizer, seed, report, split):
        group = make_optimizer(nn.Linear(1, 1)).param_groups[0]
        value = random.Random(f"{seed} {group['lr']}").gauss(0, 0.01)
        value += by * any(one["lr"] == group["lr"] for one in lucky)
        report(1, value)
        return value

    return Problem(name="unfair", train=train, metric="score", higher_is_better=True)


def test_each_name_has_trials_and_seeds_of_its_own():
    campaign = plan(quadratic(), "adamw", 5, 2, self_test=3)
    assert campaign.methods == ["adamw", "adamw (2)", "adamw (3)"]
    loaded = campaign.problems[0]
    trials = [campaign.trial_specs(loaded, name) for name in campaign.methods]
    settings = [str([spec.setting for spec in specs[1:]]) for specs in trials]
    assert len(set(settings)) == 3 and len({spec.key for specs in trials for spec in specs}) == 15
    assert [{spec.seed for spec in specs} for specs in trials] == [{0}, {20_000_000}, {40_000_000}]
    assert campaign.test_seeds("quadratic", "adamw") == campaign.test_seeds("quadratic", "adamw (3)")


def test_another_tuning_seed_repeats_none_of_the_tuning():
    plans = [plan(quadratic(), "adamw", 5, self_test=2, tuning_seed=seed) for seed in range(3)]
    settings = [str(tried[1:]) for each in plans for tried in each.tried.values()]
    assert len(set(settings)) == 6


def test_a_lab_that_finds_nothing_says_so_everywhere(tmp_path):
    found = compared(tmp_path, names=3, trials=2, seeds=3, margin=1e9)
    words = "self-test: 3 names of one method; called different: none, as it should be"
    problem = found.problems[0]
    assert problem.sentence == words and words in render(found)
    said = found.to_json()["quadratic"]
    assert (said["self_test"], said["sentence"], list(said["methods"])) == (
        [],
        words,
        [m.method for m in problem.methods],
    )
    opened = Store(tmp_path / "runs.db", read_only=True)
    known = restore(opened.campaigns()[-1])
    opened.close()
    assert summarize(known.described, known.records).to_json() == found.to_json()
    assert words in " ".join(printed(problem.described, known.records).split())


def test_a_difference_that_is_called_is_named(tmp_path):
    found = compared(tmp_path, told_apart(), trials=5, seeds=5, margin=0.0)
    names = found.to_json()["unfair"]["self_test"]
    assert names == ["adamw (2)"]
    begin = "self-test: 2 names of one method; called different: adamw (2) is better than adamw by 5"
    assert found.problems[0].sentence.startswith(begin) and found.problems[0].sentence.endswith(", which is false")


def test_without_a_result_nothing_is_claimed(tmp_path):
    def train(make_optimizer, seed, report, split):
        make_optimizer(nn.Linear(1, 1))
        report(1, 1.0)
        return float("nan") if split == "test" else 1.0

    problem = Problem(name="lost", train=train, metric="score", higher_is_better=True)
    said = compared(tmp_path, problem, trials=1, seeds=2).to_json()["lost"]
    assert (
        said["sentence"].endswith("nothing can be said: adamw has no test result on lost") and said["self_test"] == []
    )


def test_an_ordinary_comparison_is_none(tmp_path):
    found = compare(quadratic(), ["adamw", "sgd"], trials=1, seeds=2, store=tmp_path / "runs.db").report
    assert not found.problems[0].described.self_test and found.to_json()["quadratic"]["self_test"] is None
    alone = compare(quadratic(), "adamw", trials=1, seeds=1, store=tmp_path / "runs.db").report
    assert alone.to_json()["quadratic"]["self_test"] is None


def test_options_of_the_method_are_all_names(tmp_path):
    campaign = plan(quadratic(), "adamw", 3, self_test=2, fixes=["adamw.weight_decay=0.5"], reference="adamw (2)")
    assert {setting["weight_decay"] for tried in campaign.tried.values() for setting in tried} == {0.5}
    assert campaign.reference == "adamw (2)"


@pytest.mark.parametrize(
    ("methods", "names", "words"),
    [
        (["sgd", "adamw"], 2, "self_test compares one method with itself, got sgd, adamw; name one in methods"),
        (["sgd"], 1, "self_test must be a number of names from 2, got 1"),
        (["sgd"], True, "self_test must be a number of names from 2, got True"),
        (["sgd"], 2.0, "self_test must be a number of names from 2, got 2.0"),
    ],
)
def test_refusals(methods, names, words):
    with pytest.raises(BadInput, match=words):
        twins(entries(methods), names)
