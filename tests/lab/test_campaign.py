"""Which runs a comparison consists of and when they are due."""

from dataclasses import replace

import pytest

from polyak.lab import spec as spec_module
from polyak.lab.spec import Record, RunSpec
from tests.lab.conftest import campaign_of, quadratic, run_here

SPEC = RunSpec("here", "quadratic", "digest", "sgd", {"lr": 0.1, "betas": (0.9, 0.99)}, 0, "validation", 30)


def record(spec, metric, status="finished", target_step=None, loss=1.0):
    detail = {"target_step": target_step, "train": [[1, loss]]}
    run = (spec.key, spec.problem, spec.method, spec.setting, spec.seed, spec.split, spec.steps, {})
    return Record(*run, status, metric, detail)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "other"},
        {"until": 20},
        {"source": "other"},
        {"method": "adamw"},
        {"setting": {"lr": 0.2, "betas": (0.9, 0.99)}},
        {"seed": 1},
        {"split": "test"},
        {"steps": 31},
    ],
)
def test_whatever_decides_the_figures_is_in_the_key(change):
    assert replace(SPEC, **change).key != SPEC.key


def test_versions_are_in_the_key(monkeypatch):
    before = replace(SPEC).key
    for name in ("polyak", "code", "torch", "python"):
        monkeypatch.setattr(spec_module, "versions", lambda name=name: {**VERSIONS, name: "other"})
        assert replace(SPEC).key != before


VERSIONS = spec_module.versions()


def test_where_a_problem_lies_and_what_it_is_called_is_not_in_the_key():
    assert replace(SPEC, reference="moved", problem="renamed").key == SPEC.key
    assert replace(SPEC, setting={"betas": [0.9, 0.99], "lr": 0.1}).key == SPEC.key


def test_trials_come_first_by_turns_then_the_seeds():
    campaign = campaign_of(quadratic(), trials=2, seeds=2)
    records, order = {}, []
    while due := campaign.due(records):
        records[due[0].key] = record(due[0], metric=1.0 + due[0].seed)
        order.append((due[0].split, due[0].method, due[0].seed))
    assert order == [
        ("validation", "sgd", 0), ("validation", "adamw", 0), ("validation", "sgd", 0), ("validation", "adamw", 0),
        ("test", "sgd", 1), ("test", "adamw", 1), ("test", "sgd", 2), ("test", "adamw", 2),
    ]  # fmt: skip
    assert len(order) == campaign.total


def test_seeds_are_due_as_soon_as_their_method_is_tuned():
    campaign = campaign_of(quadratic(), trials=2, seeds=1)
    sgd = campaign.trial_specs(campaign.problems[0], "sgd")
    due = campaign.due({spec.key: record(spec, 1.0) for spec in sgd})
    assert [(spec.method, spec.split) for spec in due] == [
        ("adamw", "validation"), ("adamw", "validation"), ("sgd", "test"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("higher_is_better", "rows", "best"),
    [
        (False, [{"metric": 2.0}, {"metric": 1.0}, {"metric": 3.0}], 1),
        (True, [{"metric": 2.0}, {"metric": 1.0}, {"metric": 3.0}], 2),
        (False, [{"metric": 2.0}, {"metric": None, "status": "diverged"}, {"metric": None, "status": "failed"}], 0),
        (False, [{"metric": 1.0, "target_step": 9}, {"metric": 1.0, "target_step": 8}, {"metric": 1.0}], 1),
        (True, [{"metric": 1.0, "loss": 0.3}, {"metric": 1.0, "loss": 0.2}, {"metric": 1.0, "loss": 0.2}], 1),
    ],
)
def test_the_best_trial(higher_is_better, rows, best):
    campaign = campaign_of(quadratic(higher_is_better=higher_is_better))
    specs = campaign.trial_specs(campaign.problems[0], "sgd")
    records = {spec.key: record(spec, **row) for spec, row in zip(specs, rows, strict=True)}
    assert campaign.best_trial(campaign.problems[0], "sgd", records) == specs[best]
    del records[specs[best - 1].key]
    assert campaign.best_trial(campaign.problems[0], "sgd", records) is None  # never before all have ended


def test_a_method_without_any_figure_has_no_setting_and_no_seeds():
    campaign = campaign_of(quadratic(), methods=("sgd",))
    specs = campaign.trial_specs(campaign.problems[0], "sgd")
    records = {spec.key: record(spec, None, "diverged") for spec in specs}
    assert campaign.due(records) == []


def test_more_trials_and_seeds_keep_what_is_there():
    small = run_here(campaign_of(quadratic(), methods=("sgd",), trials=2, seeds=1))
    large = campaign_of(quadratic(), methods=("sgd",), trials=4, seeds=1)
    assert len([spec for spec in large.due(small) if spec.split == "validation"]) == 2


def test_tuning_never_reads_the_test_split():
    def evaluate(model, split):
        assert split == "validation", "tuning read the test split"
        return model.weight.sum().item()

    campaign = campaign_of(quadratic(evaluate=evaluate), trials=4)
    records = run_here(campaign, until=8)
    assert [r.status for r in records.values()] == ["finished"] * 8
    assert all(spec.split == "test" for spec in campaign.due(records))
