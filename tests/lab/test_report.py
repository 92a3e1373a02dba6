"""The report as data: what it says of records, and the interface that stays."""

import json
import math
from dataclasses import replace

import pytest

from polyak.lab import table
from polyak.lab.described import Described
from polyak.lab.report import summarize
from tests.lab import synthetic
from tests.lab.conftest import campaign_of, quadratic, report_of, run_here


@pytest.fixture(scope="module")
def report(records):
    campaign, made = records
    return report_of(campaign, made)


def one(methods=2, **changes):
    """A description, its synthetic records as a list, and a way to summarize them."""
    described = synthetic.described(methods, **changes)
    return described, list(synthetic.records(described, lost=False).values())


def summary(described, records):
    return summarize([described], {record.key: record for record in records}).problems[0]


def named(problem, name):
    return next(method for method in problem.methods if method.method == name)


def test_figures_are_those_of_the_records(report, records):
    campaign, made = records
    loaded = campaign.problems[0]
    for method in report.problems[0].methods:
        finals = [made[spec.key] for spec in campaign.final_specs(loaded, method.method, made)]
        trials = [made[spec.key] for spec in campaign.trial_specs(loaded, method.method)]
        values = [record.metric for record in finals]
        assert method.metrics == {record.seed: record.metric for record in finals}
        assert method.median == pytest.approx(sum(values) / 2)
        assert (method.low, method.high) == (min(values), max(values))
        assert method.setting == finals[0].setting
        assert method.chosen.first == min(record.metric for record in trials)
        assert method.state_bytes_per_parameter == finals[0].detail["state_bytes"] / 4
        steps = [record.detail["target_step"] or math.inf for record in finals]
        assert method.reached == sum(math.isfinite(s) for s in steps)
        assert [row[0] for row in method.validation_curve] == [s for s, _ in finals[0].detail["validation"]]


def test_the_order_of_records_does_not_matter(report, records):
    campaign, made = records
    again = report_of(campaign, dict(reversed(made.items())))
    assert again.to_json() == report.to_json() and again.data() == report.data()


def test_the_interface_that_stays():
    described, records = one(3)
    lost = replace(records[-1], status="diverged", metric=None, detail={"reason": "the loss is NaN", "step": 17})
    found = summarize([described], {record.key: record for record in [*records[:-1], lost]}).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"digits"} and found["digits"]["reference"] == "adamw"
    assert found["digits"]["best"] in found["digits"]["methods"]
    assert set(found["digits"]["methods"]) == {"adamw", "sgd", "muon"}
    wanted = ["difference", "low", "high", "probability_of_improvement", "call", "seeds", "setting", "failures"]
    for method in found["digits"]["methods"].values():
        assert list(method) == wanted and method["call"] in ("better", "worse", "equivalent", "unsettled")
    reference = found["digits"]["methods"]["adamw"]
    assert [reference[name] for name in wanted[:6]] == [0.0, 0.0, 0.0, 0.5, "equivalent", 5]
    assert found["digits"]["methods"]["muon"]["failures"] == [{"reason": "the loss is NaN", "step": 17}]


def test_positive_differences_are_better_whatever_the_metric():
    for higher in (True, False):
        described, records = one(2, higher_is_better=higher, target=None)
        for record in records:
            if record.method == "sgd" and record.split == "test":
                records[records.index(record)] = replace(record, metric=record.metric + 0.1 * (1 if higher else -1))
        problem = summary(described, records)
        assert problem.methods[0].method == "sgd" and problem.methods[0].judgement.difference > 0


def test_the_sentence_names_the_rate_of_the_best_and_steps_that_take_longer():
    described, records = one(2, margin=0.5)
    for i, record in enumerate(records):
        time = {"adamw": 5.0, "sgd": 8.0}[record.method]
        records[i] = replace(record, detail={**record.detail, "timing": {"step_ms": time}})
    problem = summary(described, records)
    rate = named(problem, "adamw").setting["lr"]
    assert problem.sentence.startswith(f"use adamw, lr {rate:.2g}; sgd is equivalent")
    assert problem.sentence.endswith("1.6x slower a step")


def test_a_warning_that_many_methods_have_is_told_once():
    described, records = one(4)
    few = [r for r in records if r.split == "test" or r.seed == 0]
    warnings = summary(described, few).warnings
    ahead = "the chosen setting is ahead of the second best on its only tuning seed"
    assert [w for w in warnings if ahead in w] == [f"{', '.join(described.methods)}: {ahead}"]


def test_trials_hold_the_tuning_seed_first_and_the_seeds_that_were_run_again():
    described, records = one()
    method = summary(described, records).methods[0]
    assert len(method.trials) == 10
    assert sorted(map(len, (t.validation for t in method.trials))) == [1] * 9 + [3]
    assert all(next(iter(t.validation)) == 0 for t in method.trials)
    assert list(method.chosen.validation) == [0, 1, 2]


def test_expected_validation_after_k_trials():
    described, records = one()
    method = summary(described, records).methods[0]
    first = [trial.first for trial in method.trials]
    assert [k for k, _ in method.expected] == list(range(1, 11))
    values = [value for _, value in method.expected]
    assert values[0] == pytest.approx(sum(first) / 10)
    assert values == sorted(values) and values[-1] <= max(first)


def test_a_chosen_value_at_the_edge_of_its_range_is_marked():
    for rate, edges in ((9e-2, ["lr"]), (2e-5, ["lr"]), (1e-3, [])):
        described, records = one()
        inner = {"lr": rate, "weight_decay": 0.01, "betas": [0.9, 0.99]}
        some = [replace(r, setting=inner) if r.split == "test" else r for r in records]
        assert summary(described, some).methods[0].edges == edges


def test_failures_are_told_by_reason_and_step():
    described, records = one()
    trials = [r for r in records if r.method == "sgd" and r.split == "validation" and r.seed == 0]
    reasons = [
        ({"reason": "the loss is NaN", "step": 4}, "diverged"),
        ({"reason": "the loss is NaN", "step": 4}, "diverged"),
        ({"error": "Traceback\n  ...\nValueError: no\n"}, "failed"),
        ({}, "crashed"),
    ]
    for trial, (detail, status) in zip([t for t in trials if t.metric < 0.9], reasons, strict=False):
        records[records.index(trial)] = replace(trial, status=status, metric=None, detail=detail)
    method = named(summary(described, records), "sgd")
    assert method.counted() == {
        ("the loss is NaN", 4, True): 2,
        ("ValueError: no", None, True): 1,
        ("crashed", None, True): 1,
    }


def test_a_diverged_run_counts_as_infinitely_bad_and_a_failed_one_for_nothing():
    described, records = one()
    finals = [r for r in records if r.method == "sgd" and r.split == "test"]
    for final, status in zip(finals, ("diverged", "diverged", "diverged", "failed"), strict=False):
        records[records.index(final)] = replace(final, status=status, metric=None, detail={})
    method = named(summary(described, records), "sgd")
    assert (method.median, method.low, method.high) == (None, None, finals[4].metric)
    assert list(method.metrics) == [1, 2, 3, 5] and len(method.failures) == 4


def test_a_method_that_never_works_is_last_and_the_others_are_judged():
    described, records = one(3)
    some = [r for r in records if r.method != "adamw"]
    problem = summary(replace(described, reference="sgd"), some)
    assert problem.methods[-1].method == "adamw"
    worst = problem.methods[-1]
    assert (worst.setting, worst.metrics, worst.median, worst.target_step) == (None, {}, None, None)


def test_nothing_ran_at_all():
    described = synthetic.described(2)
    report = summarize([described], {})
    assert all(
        m["call"] == "unsettled" or m["difference"] is None for m in report.to_json()["digits"]["methods"].values()
    )


def test_runs_under_way_and_of_others_are_left_out():
    described, records = one()
    other = [replace(records[0], key="a", status="running"), replace(records[0], key="b", method="lion", metric=2.0)]
    other += [replace(records[0], key="c", problem="elsewhere", metric=3.0)]
    report = summarize([described], {r.key: r for r in [*records, *other]})
    assert report.data() == summarize([described], {r.key: r for r in records}).data()


def test_runs_of_a_loop_without_our_own_details():
    """What a training function of the user's reports may be no more than a metric."""
    described, records = one()
    bare = [replace(r, detail={}) for r in records]
    method = summary(described, bare).methods[0]
    assert method.validation_curve == [] and method.state_bytes_per_parameter is None
    assert method.timing == dict.fromkeys(("target_seconds", "step_ms", "optimizer_ms", "compile_seconds"))


def test_profiles_need_several_problems(report):
    assert report.profiles == {}
    campaign = campaign_of(quadratic(), quadratic(name="other", target=1.0))
    several = report_of(campaign, run_here(campaign))
    assert set(several.profiles) == {"sgd", "adamw"}
    assert max(share for corners in several.profiles.values() for _, share in corners) <= 1


def test_errors_are_grouped():
    def loss(model, batch):
        raise RuntimeError("broken")

    campaign = campaign_of(quadratic(loss=loss))
    report = report_of(campaign, run_here(campaign))
    assert len(report.errors) == 6 and len(report.distinct_errors()) == 1


def test_a_description_survives_the_store():
    described = synthetic.described(3)
    assert Described.from_json(json.loads(json.dumps(described.to_json()))) == described


def test_a_run_on_another_seed_that_an_error_ended_says_nothing_of_its_setting():
    described, records = one()
    again = next(r for r in records if r.method == "sgd" and r.split == "validation" and r.seed == 2)
    lost = replace(again, status="crashed", metric=None, detail={"error": "killed"})
    method = named(summary(described, [lost if r is again else r for r in records]), "sgd")
    assert list(method.chosen.validation) == [0, 1] and (len(method.failures), method.runs) == (1, 17)


def test_warnings_are_about_the_setting_that_was_reported():
    described, records = one()
    others = [r for r in records if r.method == "sgd" and r.split == "validation" and r.seed == 0]
    worst = min(others, key=lambda r: r.metric)
    inner = replace(worst, setting={"lr": 9.9e-2, "weight_decay": 0.01, "betas": [0.9, 0.99]})
    moved = [replace(r, setting=inner.setting) if r.method == "sgd" and r.split == "test" else r for r in records]
    warnings = summary(described, [inner if r is worst else r for r in moved]).warnings
    assert any(w.startswith("sgd: lr 0.099 lies at the upper end") for w in warnings)


def taking(records, seconds):
    """The same runs, which took so long by method and number."""
    made, counts = [], {}
    for record in records:
        number = counts[record.method] = counts.get(record.method, -1) + 1
        timing = {**record.detail.get("timing", {}), "total_seconds": seconds(record.method, number)}
        made.append(replace(record, detail={**record.detail, "timing": timing}))
    return made


def test_the_slowest_run_is_named_where_it_took_far_longer_than_its_method_s_others():
    described, records = one(2)
    # sgd always takes long: that is no news. One run of adamw does, by what is not compiling.
    slow = taking(records, lambda method, n: 100.0 if method == "sgd" else 32.1 if n == 14 else 2.1)
    found = summary(described, slow).slowest
    last = [r for r in records if r.method == "adamw"][14]
    assert (found.method, found.split, found.seed, found.setting) == ("adamw", "test", last.seed, last.setting)
    assert (found.seconds, found.times) == (pytest.approx(32.0), pytest.approx(16.0))
    words = table.slowest(summary(described, slow))
    said = f"the slowest run took 32 s, 16 times the median of its method's: adamw, test seed {last.seed}, lr="
    assert words.startswith(said)


@pytest.mark.parametrize("seconds", [lambda method, n: 2.0 + n / 10, lambda method, n: 0.2 + (n == 3), lambda *_: None])
def test_no_run_is_named_for_a_little(seconds):
    described, records = one(2)
    problem = summary(described, taking(records, seconds))
    assert problem.slowest is None and table.slowest(problem) == ""


@pytest.mark.parametrize("higher", [True, False])
def test_a_target_that_nobody_met_is_said(higher):
    described, records = one(2, higher_is_better=higher, target=0.9999 if higher else 1e-6)
    missed = [replace(r, detail={**r.detail, "target_step": None}) for r in records]
    curves = [v for r in missed if r.split == "test" for _, v in r.detail["validation"]]
    nearest = max(curves) if higher else min(curves)
    said = f"the target, validation accuracy {described.target:.4g}; the nearest came to {nearest:.4g}"
    first = summary(described, missed).warnings[0]
    assert first == f"no run at a chosen setting met {said}"
    assert not any("met the target" in w for w in summary(replace(described, target=None), missed).warnings)
    met = replace(missed[-1], detail={**missed[-1].detail, "target_step": 8})
    assert not any("the nearest" in w for w in summary(described, [*missed[:-1], met]).warnings)


def test_a_reference_without_a_result_leaves_the_order_of_the_others():
    described, records = one(4)
    lost = [replace(r, status="diverged", metric=None, detail={}) if r.method == "adamw" else r for r in records]
    problem = summary(described, lost)
    order = [m.method for m in problem.methods]
    means = {m.method: sum(m.metrics.values()) / 5 for m in problem.methods if m.method != "adamw"}
    assert order == [*sorted(means, key=means.get, reverse=True), "adamw"]
    rate = named(problem, order[0]).setting["lr"]
    said = f"the reference adamw came to no result; of the others {order[0]}, lr {rate:.2g}, has the best mean test"
    assert problem.sentence.startswith(said)


def changed(records, method, split, change):
    """The records with those of one method and split changed, by their number."""
    some = [r for r in records if r.method == method and r.split == split]
    new = {r.key: change(number, r) for number, r in enumerate(some)}
    return [new.get(r.key, r) for r in records if new.get(r.key, r) is not None]


def test_what_errors_ended_is_no_divergence():
    described, records = one()
    timed_out = {"status": "timeout", "metric": None, "detail": {"reason": "it took longer than 5 s"}}
    gone = changed(records, "sgd", "validation", lambda i, r: replace(r, **timed_out) if r.seed == 0 else None)
    problem = summary(described, [r for r in gone if (r.method, r.split) != ("sgd", "test")])
    judgement = named(problem, "sgd").judgement
    assert (judgement.call, judgement.more_seeds) == ("unsettled", None)
    assert "sgd: no trial ended with a figure: it took longer than 5 s" in problem.warnings
    assert not any("diverged" in warning for warning in problem.warnings)

    lost = {**timed_out, "status": "diverged"}
    gone = changed(records, "sgd", "validation", lambda i, r: replace(r, **lost) if r.seed == 0 else None)
    problem = summary(described, [r for r in gone if (r.method, r.split) != ("sgd", "test")])
    assert named(problem, "sgd").judgement.call == "worse" and "sgd: every trial diverged" in problem.warnings


def test_a_trial_that_an_error_ended_counts_for_nothing():
    described, records = one()
    worst = min((r for r in records if r.method == "sgd" and r.seed == 0), key=lambda r: r.metric)
    lost = replace(worst, status="crashed", metric=None, detail={"error": "killed"})
    with_it = summary(described, [lost if r is worst else r for r in records])
    without = summary(described, [r for r in records if r is not worst])
    assert named(with_it, "sgd").judgement == named(without, "sgd").judgement
    assert named(with_it, "sgd").expected[0][1] == named(without, "sgd").expected[0][1]
    assert len(named(with_it, "sgd").trials) == len(named(without, "sgd").trials) + 1


def test_a_stopped_trial_counts_with_its_last_value_in_what_a_budget_buys():
    described, records = one()
    first = next(r for r in records if r.method == "sgd" and r.split == "validation" and r.seed == 0)
    trials = []
    for i in range(20):  # from the eleventh on the worse half is stopped
        value = 0.1 * (i % 10 + 1)
        stopped = i >= 10 and value < 0.55
        detail = {"validation": [[5, 0.0], [10, value]]}
        status, metric = ("stopped", None) if stopped else ("finished", value)
        changes = {"key": f"trial {i}", "setting": {"lr": i}, "status": status, "metric": metric, "detail": detail}
        trials.append(replace(first, **changes))
    method = named(summary(described, [r for r in records if r.method != "sgd"] + trials), "sgd")
    assert method.expected[0] == [1, pytest.approx(0.55)]  # without those it was .633
    eleventh = next(trial for trial in method.trials if trial.setting == {"lr": 10})
    assert (eleventh.validation, eleventh.last) == ({0: None}, 0.1)


def test_a_target_met_before_the_first_step_is_met():
    problems, made = [], {}
    for name in ("one", "two"):
        described = synthetic.described(2, name)
        records = list(synthetic.records(described, lost=False).values())
        at_once = changed(records, "sgd", "test", lambda i, r: replace(r, detail={**r.detail, "target_step": 0}))
        made |= {r.key: r for r in at_once}
        problems.append(described)
    report = summarize(problems, made)
    assert [named(p, "sgd").target_step for p in report.problems] == [0, 0]
    assert report.profiles["sgd"][-1] == (1.0, 1.0)


def test_of_equals_the_method_that_met_the_target_at_step_0_comes_first():
    described, records = one()
    plain = [replace(r, metric=0.9, detail={**r.detail, "target_step": 7}) for r in records if r.split == "test"]
    at_once = changed(plain, "sgd", "test", lambda i, r: replace(r, detail={**r.detail, "target_step": 0}))
    assert [m.method for m in summary(described, at_once).methods] == ["sgd", "adamw"]
