"""Times that are measured alone and in turn: what a round is, what is kept, and where they show."""

import json
import time
from dataclasses import asdict, replace

import pytest

from polyak.lab import figures, moments, table, timing
from polyak.lab.described import Described, Timed
from polyak.lab.errors import LabError
from polyak.lab.history import describe, described, restore
from polyak.lab.moments import ROUNDS, TimingRequest, in_turn, time_here
from polyak.lab.places import Places
from polyak.lab.report import summarize
from polyak.lab.store import Store
from polyak.lab.timing import timed_alone
from tests.lab.conftest import campaign_of, polyak, quadratic, report_data, run_here

TWO = Places(2)


def rounds_of(seconds, a_moment=1.0, fails=()):
    """The order in which methods had their turns, and the rounds that came of it."""
    order, passed = [], [0.0]

    def moment(name):
        order.append(name)
        passed[0] += a_moment
        return None if len(order) in fails else {"step_ms": 2.0 * len(order)}

    found = in_turn("ABC", moment, lambda: passed[0], seconds)
    return "".join(order), [[each["step_ms"] for each in times] for times in found]


def test_methods_have_their_turns_in_whole_rounds():
    assert rounds_of(100.0) == ("ABC" * ROUNDS, [[6 * i + 2, 6 * i + 4, 6 * i + 6] for i in range(ROUNDS)])
    assert rounds_of(6.0)[0] == "ABCABC"  # one more would not fit
    assert rounds_of(5.9)[0] == "ABC"
    assert rounds_of(1.9) == ("AB", [])  # not one
    assert rounds_of(100.0, fails=(2,)) == ("AB", [])
    assert rounds_of(100.0, fails=(5,)) == ("ABCAB", [[2.0, 4.0, 6.0]])


@pytest.fixture
def found():
    campaign = campaign_of(quadratic(loss=slow), methods=("sgd", "adamw"), trials=1, seeds=2)
    return campaign, run_here(campaign)


def slow(model, batch):
    time.sleep(0.002)
    return quadratic().loss(model, batch)


def requested(campaign, records, **changes):
    specs = [campaign.best_trial(campaign.problems[0], method, records) for method in campaign.methods]
    return TimingRequest((tuple(replace(spec, **changes) for spec in specs),), 20.0)


def test_each_method_is_timed_at_its_setting(found):
    (timed,) = time_here(requested(*found), lambda spec: quadratic(loss=slow))
    assert timed.rounds == ROUNDS and list(timed.methods) == ["sgd", "adamw"]
    for method in timed.methods.values():
        assert method["step_ms"] > 2.0 > method["optimizer_ms"] > 0.0


def test_a_long_run_is_left_soon(found, monkeypatch):
    monkeypatch.setattr(moments, "MOST_STEPS", 8)
    steps = []

    def counted(model, batch):
        steps.append(1)
        return quadratic().loss(model, batch)

    time_here(requested(*found), lambda spec: quadratic(loss=counted))
    assert len(steps) == 2 * ROUNDS * 8


def test_a_run_that_fails_has_no_time(found):
    assert time_here(requested(*found), lambda spec: quadratic(loss=lambda *a: 1 / 0)) == [None]


def asked(monkeypatch, answer):
    requests = []

    def ask(request, device, patience):
        requests.append(request)
        if isinstance(answer, Exception):
            raise answer
        return [answer]

    monkeypatch.setattr(timing, "ask", ask)
    return requests


def timed_of(campaign, records, **times):
    (specs,) = requested(campaign, records).problems
    return Timed(3, {s.method: {"setting": s.setting, "step_ms": times[s.method], "optimizer_ms": 1.0} for s in specs})


def test_what_was_measured_is_kept_while_the_settings_are_the_same(found, monkeypatch):
    campaign, records = found
    timed = timed_of(*found, sgd=7.0, adamw=9.0)
    requests = asked(monkeypatch, timed)
    first = timed_alone(campaign, records, TWO, {})
    assert first == {"quadratic": timed} and len(requests) == 1 and requests[0].seconds == 20.0
    assert timed_alone(campaign, records, TWO, first) == first and len(requests) == 1
    other = Timed(3, {"sgd": {**timed.methods["sgd"], "setting": {"lr": 7.0}}, "adamw": timed.methods["adamw"]})
    assert timed_alone(campaign, records, TWO, {"quadratic": other}) == first and len(requests) == 2
    assert timed_alone(campaign, records, Places(1), {}) == {} and len(requests) == 2  # they were alone


def test_long_comparisons_may_be_timed_for_longer(found, monkeypatch):
    campaign, records = found
    requests = asked(monkeypatch, None)
    hours = {k: replace(r, detail={**r.detail, "timing": {"total_seconds": 3600.0}}) for k, r in records.items()}
    assert timed_alone(campaign, hours, TWO, {}) == {}
    assert requests[0].seconds == pytest.approx(0.05 * 3600 * len(records) / 2)


def test_a_worker_that_fails_leaves_the_times_of_the_runs(found, monkeypatch):
    asked(monkeypatch, LabError("it died"))
    assert timed_alone(*found, TWO, {}) == {}


def test_the_times_replace_those_of_the_runs_in_every_report(found, tmp_path):
    campaign, records = found
    timed = timed_of(*found, sgd=7.0, adamw=9.0)
    plain = described(describe(campaign, "x"))
    told = {**describe(campaign, "x"), "timed": {"quadratic": asdict(timed)}}
    store = Store(tmp_path / "runs.db")
    store.begin(campaign.identity, describe(campaign, "x"))
    store.tell(campaign.identity, told)
    (stored,) = store.campaigns()
    assert store.description(campaign.identity) == stored.description and store.description("none") == {}
    store.close()
    for one in (described(told), restore(stored).described):
        problem = summarize(one, records).problems[0]
        assert {m.method: m.timing["step_ms"] for m in problem.methods} == {"sgd": 7.0, "adamw": 9.0}
        assert "1.3x slower a step" in problem.sentence
        assert table.timed(problem) == "of each method alone, in turn with the others, 3 rounds"
        assert table.timed(problem) in figures.costs(problem).text
        judged, before = problem.to_json(), summarize(plain, records).problems[0].to_json()
        assert {**judged, "sentence": ""} == {**before, "sentence": ""}  # no verdict changes
        assert Described.from_json(one[0].to_json()) == one[0]
    without = summarize(plain, records).problems[0]
    assert table.timed(without) == "in the runs" and without.methods[0].timing["step_ms"] not in (7.0, 9.0)


def test_another_setting_has_other_times():
    timed = Timed(1, {"sgd": {"setting": {"lr": 0.1, "betas": [0.9, 0.99]}, "step_ms": 3.0, "optimizer_ms": None}})
    assert timed.times("sgd", {"lr": 0.1, "betas": (0.9, 0.99)}) == {"step_ms": 3.0, "optimizer_ms": None}
    assert timed.times("sgd", {"lr": 0.2}) == timed.times("adamw", {"lr": 0.1}) == timed.times("sgd", None) == {}


@pytest.mark.slow
def test_after_runs_beside_each_other_the_report_says_how_times_were_measured(tmp_path):
    arguments = ["--methods", "adamw,lion", "--trials", "1", "--seeds", "1", "--steps", "20", "--workers", "2"]
    words = "of each method alone, in turn with the others, 5 rounds"
    done = polyak("compare", "rosenbrock", *arguments, cwd=tmp_path)
    assert done.returncode == 0 and f"times of a step: {words}" in done.stdout, done.stderr
    assert polyak("report", "polyak-runs.db", "--report", "again.html", cwd=tmp_path).returncode == 0
    pages = [(tmp_path / name).read_text() for name in ("polyak-report.html", "again.html")]
    assert all(words in page for page in pages)
    assert report_data(tmp_path / "again.html") == report_data(tmp_path / "polyak-report.html")
    assert len(json.loads(polyak("runs", "polyak-runs.db", "--json", cwd=tmp_path).stdout)) == 4  # as without
