"""Which runs a comparison consists of and when they are due."""

from dataclasses import replace

import pytest

from polyak.lab import spec as spec_module
from polyak.lab.campaign import Campaign
from polyak.lab.errors import BadInput
from polyak.lab.spec import Record, RunSpec
from polyak.lab.stopping import hopeless
from tests.lab.conftest import campaign_of, quadratic, record_of, run_here

SPEC = RunSpec("here", "quadratic", "digest", "sgd", {"lr": 0.1, "betas": (0.9, 0.99)}, 0, "validation", 30)


def record(spec, metric, status="finished", target_step=None, loss=1.0):
    detail = {"target_step": target_step, "train": [[1, loss]]}
    run = (spec.key, spec.problem, spec.method, spec.setting, spec.seed, spec.split, spec.steps, {})
    return Record(*run, status, metric, detail)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "other"},
        {"source": "other"},
        {"method": "adamw"},
        {"setting": {"lr": 0.2, "betas": (0.9, 0.99)}},
        {"seed": 1},
        {"split": "test"},
        {"steps": 31},
        {"code": "other"},
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


def test_where_things_lie_and_what_a_problem_is_called_is_not_in_the_key():
    assert replace(SPEC, reference="moved", contender="moved", problem="renamed").key == SPEC.key
    assert replace(SPEC, bars=((10, 0.5),)).key == SPEC.key  # what is not stopped has the same figures
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
        (False, [{"metric": 1.0, "target_step": 9}, {"metric": 1.0, "target_step": 0}, {"metric": 1.0}], 1),
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


def made_up(campaign, metric_of, until=None):
    """Records in the order in which runs become due, each with the metric that a function gives its spec."""
    records, order = {}, []
    while (due := campaign.due(records)) and (until is None or len(order) < until):
        spec = due[0]
        records[spec.key] = record(spec, metric_of(spec))
        order.append(spec)
    return records, order


def test_the_best_three_are_run_again_and_the_mean_decides():
    campaign = campaign_of(quadratic(), methods=("sgd",), trials=10, seeds=2)
    loaded = campaign.problems[0]
    specs = campaign.trial_specs(loaded, "sgd")
    lucky, steady, third = specs[4].setting, specs[7].setting, specs[1].setting

    def metric(spec):
        if spec.split == "test":
            return 0.0
        if spec.setting == lucky:
            return 0.1 if spec.seed == 0 else 5.0
        return {str(steady): 0.3, str(third): 0.4}.get(str(spec.setting), 1.0)

    records, order = made_up(campaign, metric)
    again = [spec for spec in order if spec.split == "validation" and spec.seed]
    assert campaign.reruns == 2 and len(again) == 6 and len(order) == campaign.total == 18
    assert {str(spec.setting) for spec in again} == {str(lucky), str(steady), str(third)}
    assert campaign.finalists(loaded, "sgd", records)[0].setting == lucky
    assert campaign.best_trial(loaded, "sgd", records).setting == steady
    finals = [spec for spec in order if spec.split == "test"]
    assert [spec.seed for spec in finals] == [1, 2] and all(spec.setting == steady for spec in finals)
    assert not {spec.seed for spec in again} & {
        spec.seed for spec in finals
    }  # what chose the setting does not judge it
    del records[again[0].key]
    assert campaign.best_trial(loaded, "sgd", records) is None and campaign.due(records) == [again[0]]


def test_a_setting_that_diverges_on_another_seed_comes_last_and_an_error_says_nothing():
    campaign = campaign_of(quadratic(), methods=("sgd",), trials=5, seeds=1)
    loaded = campaign.problems[0]
    specs = campaign.trial_specs(loaded, "sgd")
    records = {spec.key: record(spec, 0.1 * (i + 1)) for i, spec in enumerate(specs)}
    again = [campaign.rerun_specs(loaded, "sgd", spec)[0] for spec in campaign.finalists(loaded, "sgd", records)]
    outcomes = [(None, "diverged"), (None, "failed"), (0.25, "finished")]
    records |= {spec.key: record(spec, *outcome) for spec, outcome in zip(again, outcomes, strict=True)}
    assert campaign.best_trial(loaded, "sgd", records) == specs[1]


def test_the_default_budget_says_how_many_re_runs():
    assert [campaign_of(quadratic(), trials=n).reruns for n in (1, 4, 5, 10, 20)] == [0, 0, 1, 2, 4]
    assert campaign_of(quadratic(), trials=4, reruns=3).reruns == 3
    alone = campaign_of(quadratic(), methods=("sgd",), trials=1, seeds=1, reruns=3)
    assert len(run_here(alone)) == 2 == alone.total  # nothing to choose from


def test_the_same_comparison_keeps_its_re_runs_and_its_seeds():
    campaign = campaign_of(quadratic(), trials=10, reruns=5).with_seeds({("quadratic", "adamw"): 7})
    for again in (campaign.with_problems(campaign.problems), campaign.with_counts(20, 3)):
        assert (again.reruns, again.seeds_at("quadratic", "adamw")) == (5, 7)
    assert campaign_of(quadratic(), trials=10).with_counts(20, 3).reruns == 4


def test_another_tuning_seed_changes_trials_and_all_seeds():
    keys = []
    for seed in (0, 1):
        campaign = campaign_of(quadratic(), trials=5, seeds=2, tuning_seed=seed)
        _, order = made_up(campaign, lambda spec: 1.0)
        keys.append({(spec.seed, spec.split) for spec in order})
    assert not keys[0] & keys[1]


def test_the_same_method_under_two_names_is_tuned_apart_and_judged_on_the_same_seeds():
    campaign = campaign_of(quadratic(), methods=("adamw",), trials=5, seeds=2)
    one = campaign.contenders["adamw"]
    twins = Campaign(campaign.problems, [one, replace(one, name="adamw b", tuning_seed=1)], 5, 2)
    _, order = made_up(twins, lambda spec: 1.0)
    first, second = ([spec for spec in order if spec.method == name] for name in twins.methods)
    assert [spec.setting for spec in first[1:5]] != [spec.setting for spec in second[1:5]]
    assert {s.seed for s in first if s.split == "test"} == {s.seed for s in second if s.split == "test"} == {1, 2}
    assert not {spec.key for spec in first} & {spec.key for spec in second}


def test_more_seeds_for_one_method_alone():
    campaign = campaign_of(quadratic(), trials=2, seeds=2)
    more = campaign.with_seeds({("quadratic", "adamw"): 5})
    _, order = made_up(more, lambda spec: 1.0)
    count = {m: sum(s.method == m and s.split == "test" for s in order) for m in more.methods}
    assert count == {"sgd": 2, "adamw": 5} and len(order) == more.total
    assert more.identity == campaign.identity and campaign.seeds_at("quadratic", "adamw") == 2


def test_the_reference_is_the_first_or_a_named_one():
    assert campaign_of(quadratic()).reference == "sgd"
    assert campaign_of(quadratic(), reference="adamw").reference == "adamw"
    with pytest.raises(BadInput, match=r"the reference 'adanw' is none of the methods; did you mean adamw"):
        campaign_of(quadratic(), reference="adanw")


class TestStopping:
    """Successive halving of trials, by their numbers and steps alone."""

    def curve(self, spec, values, status="finished", metric=1.0):
        made = record(spec, metric, status)
        made.detail["validation"] = [[8, values[0]], [15, values[1]], [30, values[2]]]
        return made

    def campaign(self, trials=30, **changes):
        return campaign_of(quadratic(**changes), methods=("sgd",), trials=trials)

    def test_the_first_ten_have_no_bars_and_the_next_wait_for_them(self):
        campaign = self.campaign()
        specs = campaign.trial_specs(campaign.problems[0], "sgd")
        assert [spec.key for spec in campaign.due({})] == [spec.key for spec in specs[:10]]
        assert all(spec.bars == () for spec in campaign.due({}))
        records = {s.key: self.curve(s, [10 + i, i, 0]) for i, s in enumerate(specs[:10])}
        due = campaign.due(records)
        assert [spec.key for spec in due] == [spec.key for spec in specs[10:20]]
        assert {spec.bars for spec in due} == {((8, 14.5), (15, 4.5))}

    def test_bars_do_not_depend_on_the_order_of_records_or_on_the_budget(self):
        campaign, larger = self.campaign(20), self.campaign(40)
        specs = campaign.trial_specs(campaign.problems[0], "sgd")
        records = {s.key: self.curve(s, [10 + i, i, 0]) for i, s in enumerate(specs[:10])}
        backwards = dict(reversed(records.items()))
        barred = [(spec.key, spec.bars) for spec in campaign.due(records)]
        assert barred == [(spec.key, spec.bars) for spec in campaign.due(backwards)]
        assert barred == [(spec.key, spec.bars) for spec in larger.due(records)]

    def test_what_was_stopped_is_no_bar_later_and_is_not_chosen(self):
        campaign = self.campaign()
        loaded = campaign.problems[0]
        specs = campaign.trial_specs(loaded, "sgd")
        records = {s.key: self.curve(s, [10 + i, i, 0]) for i, s in enumerate(specs[:10])}
        for spec in specs[10:20]:
            records[spec.key] = record(spec, 0.0, "stopped")
            records[spec.key].detail["validation"] = [[8, 20.0]]
        assert campaign.due(records)[0].bars == ((8, 19.5), (15, 4.5))
        for spec in specs[20:]:
            records[spec.key] = record(spec, 3.0)
        assert all(spec in specs[:10] for spec in campaign.finalists(loaded, "sgd", records))

    @pytest.mark.parametrize(
        ("higher_is_better", "curve", "stops"),
        [
            (False, [(8, 14.0)], False),
            (False, [(8, 15.0)], True),
            (False, [(4, 14.0), (8, 99.0)], False),  # the best so far
            (False, [(4, 99.0)], False),  # not there yet
            (False, [(8, 14.0), (15, 13.0)], True),
            (False, [(8, float("nan"))], False),  # that is divergence's to say
            (True, [(8, 15.0)], False),
            (True, [(8, 14.0)], True),
            (False, [(30, 99.0)], False),  # at its end
        ],
    )
    def test_hopeless(self, higher_is_better, curve, stops):
        problem = quadratic(higher_is_better=higher_is_better)
        second = 4.5 if not higher_is_better else 99.0
        assert hopeless(problem, 30, ((8, 14.5), (15, second)), curve) is stops

    def test_a_run_ends_at_its_bar_and_is_else_untouched(self):
        campaign = campaign_of(quadratic(), methods=("sgd",), trials=1, seeds=1)
        spec = campaign.trial_specs(campaign.problems[0], "sgd")[0]
        whole = record_of(spec, quadratic())
        spared = record_of(replace(spec, bars=((8, 1e9), (15, 1e9))), quadratic())
        assert (spared.status, spared.metric) == ("finished", whole.metric)
        stopped = record_of(replace(spec, bars=((8, 1e9), (15, -1.0))), quadratic())
        assert (stopped.status, stopped.metric, stopped.detail["step"]) == ("stopped", None, 15)
        assert stopped.detail["validation"] == whole.detail["validation"][: len(stopped.detail["validation"])]

    def test_a_whole_comparison_with_stopping(self):
        campaign = campaign_of(quadratic(), methods=("adamw",), trials=20, seeds=1)
        records = run_here(campaign)
        trials = [records[spec.key] for spec in campaign.trial_specs(campaign.problems[0], "adamw")]
        assert {record.status for record in trials[:10]} == {"finished"}
        assert 1 <= sum(record.status == "stopped" for record in trials[10:]) <= 9
        best = campaign.best_trial(campaign.problems[0], "adamw", records)
        assert records[best.key].status == "finished"
