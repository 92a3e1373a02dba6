"""Seeds are added where they decide, at a level that all looks share, and a stopped comparison comes to the same."""

import random
from dataclasses import replace

import pytest
from torch import nn
from typer.testing import CliRunner

from polyak.lab import BadInput, Problem, compare, fit, plan
from polyak.lab.clear import LOOKS, after_look, level
from polyak.lab.commands import app
from polyak.lab.history import restore
from polyak.lab.report import summarize
from polyak.lab.store import Store
from tests.lab.conftest import campaign_of, quadratic, without_times

SHIFTS = {"SGD": 0.0, "AdamW": 1.2, "Lion": 9.0, "Adan": 0.1}


def noisy(**shifts):
    """Nothing is trained: a method's metric is its shift and noise of its own."""

    def train(make_optimizer, seed, report, split):
        name = type(make_optimizer(nn.Linear(1, 1))).__name__
        value = {**SHIFTS, **shifts}[name] + random.Random(f"{name} {seed}").gauss(0, 1)
        report(1, value)
        return value

    return Problem(name="noisy", train=train, metric="score", higher_is_better=True)


class Seen:
    """Remembers what it was told, and stops the comparison after some runs."""

    def __init__(self, until=None):
        self.here, self.words, self.totals, self.until = 0, [], [], until

    def began(self, spec):
        pass

    def progress(self, spec, step, steps):
        pass

    def ended(self, record, here):
        self.here += here
        if self.here == self.until:
            raise KeyboardInterrupt

    def grew(self, plan, why):
        self.words.append(why)
        self.totals.append(plan.total)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "runs.db"


def cleared(problem, store, methods=("sgd", "adamw", "lion"), **more):
    asked = {"trials": 1, "seeds": 5, "margin": 0.0, "until_clear": True, "store": store, **more}
    return compare(problem, methods, **asked).report


def seeds(report):
    return {method.method: len(method.metrics) for method in report.problems[0].methods}


def restored(store):
    opened = Store(store, read_only=True)
    try:
        return restore(opened.campaigns()[-1])
    finally:
        opened.close()


def test_seeds_are_added_where_a_call_is_open_until_it_is_settled(store):
    seen = Seen()
    found = cleared(noisy(), store, watcher=seen)
    calls = {method.method: method.judgement.call for method in found.problems[0].methods if method.judgement}
    assert calls == {"adamw": "better", "lion": "better"}
    count = seeds(found)
    assert count["lion"] == 5 < count["adamw"] == count["sgd"] <= 40
    assert seen.here == 3 + sum(count.values()) == seen.totals[-1] and 1 <= len(seen.words) < LOOKS
    first = min(10, count["adamw"])
    assert seen.words[0] == (
        f"look 1 of at most 4: adamw on noisy: 5 -> {first} seeds (not settled), "
        f"sgd on noisy: 5 -> {first} seeds (to compare with)"
    )


def test_what_is_settled_gets_no_seeds(store):
    seen = Seen()
    found = cleared(noisy(AdamW=-9.0), store, watcher=seen)
    assert set(seeds(found).values()) == {5} and seen.words == []
    assert not restored(store).may_grow


def test_it_stops_at_the_most_seeds(store):
    found = cleared(noisy(Adan=0.5), store, ("sgd", "adan"), most_seeds=7)
    assert seeds(found) == {"sgd": 7, "adan": 7}
    assert found.to_json()["noisy"]["methods"]["adan"]["call"] == "unsettled"


def test_a_method_without_any_result_gets_no_seeds(store):
    def train(make_optimizer, seed, report, split):
        if type(make_optimizer(nn.Linear(1, 1))).__name__ == "AdamW" and split == "test" and seed:
            raise RuntimeError("broken")
        report(1, float(seed % 3))
        return float(seed % 3)

    problem = Problem(name="half", train=train, metric="score", higher_is_better=True)
    assert seeds(cleared(problem, store, ("sgd", "adamw"))) == {"sgd": 5, "adamw": 0}


def test_all_looks_share_the_error(store):
    campaign = campaign_of(quadratic(), seeds=5, most_seeds=12)
    assert level(campaign, 0.95) == pytest.approx(0.9875) and level(campaign_of(quadratic()), 0.95) == 0.95
    found = cleared(noisy(), store, confidence=0.9)
    described = found.problems[0].described
    assert (described.confidence, described.looks) == (pytest.approx(0.975), LOOKS)
    assert (described.percent, described.looking.split("; ")[1]) == (
        "97.5%", "each is judged at 97.5%, so that all looks hold together at 90%.",
    )  # fmt: skip
    said = found.to_json()["noisy"]
    assert (said["confidence"], said["looks"], said["self_test"]) == (described.confidence, LOOKS, None)
    plainly = compare(noisy(), ["sgd", "adamw"], trials=1, seeds=5, store=store).verdict()["noisy"]
    assert (plainly["confidence"], plainly["looks"]) == (0.95, 1)


def test_the_last_look_adds_nothing():
    campaign = campaign_of(quadratic(), seeds=5, most_seeds=12)
    verdict = summarize_open(campaign)
    assert after_look(campaign, verdict, LOOKS - 1).seeds_at("quadratic", "adamw") == 10
    assert after_look(campaign, verdict, LOOKS) is None
    assert after_look(campaign_of(quadratic(), seeds=5), verdict, 1) is None


def summarize_open(campaign):
    """A verdict on which adamw is open."""

    class Open:
        method, call, seeds, more_seeds = "adamw", "unsettled", 5, 30

    class Verdict:
        problem, judgements = campaign.problems[0].problem.name, [Open()]

    return [Verdict()]


@pytest.mark.parametrize("until", [3, 18, 20, 24])
def test_a_stopped_comparison_comes_to_the_same(store, tmp_path, until):
    problem = noisy()
    whole, stopped, later = Seen(), Seen(until), Seen()
    wanted = cleared(problem, tmp_path / "other.db", watcher=whole)
    with pytest.raises(KeyboardInterrupt):
        cleared(problem, store, watcher=stopped)
    known = restored(store)
    assert known.may_grow
    if until > 18:  # in the second round, which the store knows of
        assert known.missing == known.campaign.total - until > 0 and known.campaign.seeds_at("noisy", "adamw") > 5
    found = cleared(problem, store, watcher=later)
    assert stopped.here + later.here == whole.here and later.words == whole.words
    assert found.to_json() == wanted.to_json()
    assert without_times(found.data()) == without_times(wanted.data())


def test_the_store_knows_the_added_seeds_and_the_level(store):
    found = cleared(noisy(), store)
    known = restored(store)
    again = summarize(known.described, known.records)
    assert (known.missing, known.may_grow, known.campaign.most_seeds) == (0, False, 40)
    assert again.to_json() == found.to_json() and again.data() == found.data()
    assert again.problems[0].described == found.problems[0].described


def test_a_plain_comparison_and_one_with_another_margin_are_not_changed_by_the_added_seeds(store):
    problem = noisy()
    cleared(problem, store)
    plainly = compare(problem, ["sgd", "adamw", "lion"], trials=1, seeds=5, store=store, margin=0.0).report
    known = restored(store)
    assert summarize(known.described, known.records).to_json() == plainly.to_json()
    assert known.campaign.most_seeds is None and set(seeds(plainly).values()) == {5}
    content = cleared(problem, store, margin=1e9)
    known = restored(store)
    assert set(seeds(content).values()) == {5}
    assert summarize(known.described, known.records).to_json() == content.to_json()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"until_clear": True, "most_seeds": 4}, "most_seeds must be above the number of seeds, 5, got 4"),
        ({"until_clear": True, "most_seeds": 5}, "most_seeds must be above the number of seeds, 5, got 5"),
        ({"until_clear": True, "seeds": 50}, "most_seeds must be above the number of seeds, 50, got 40"),
        ({"most_seeds": 30}, "most_seeds, 30, says how far until_clear goes; give both or leave it out"),
    ],
)
def test_contradictions_are_refused(more, words):
    with pytest.raises(BadInput, match=words):
        plan(quadratic(), ["sgd", "adamw"], **more)


def test_a_budget_of_time_is_refused(store):
    with pytest.raises(BadInput, match="a budget ends after a time, until_clear when calls are settled"):
        fit(plan(quadratic(), "sgd", until_clear=True), "1h", store)
    assert not store.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "1h"], "--budget ends after a time and --until-clear when calls are settled; leave one out"),
        (["--check"], "--check makes no run and --until-clear goes on making them; leave one out"),
        (["--most-seeds", "3"], "most_seeds must be above the number of seeds, 5, got 3"),
    ],
)
def test_contradictions_on_the_command_line(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["compare", "rosenbrock", "--methods", "sgd", "--until-clear", *options])
    assert isinstance(done.exception, BadInput) and words in str(done.exception)
    assert "\n" not in str(done.exception) and not list(tmp_path.iterdir())


NOISY = """
import random
from torch import nn
from polyak.lab import Problem

def problem():
    def train(make_optimizer, seed, report, split):
        name = type(make_optimizer(nn.Linear(1, 1))).__name__
        value = 1.2 * (name == "AdamW") + random.Random(f"{name} {seed}").gauss(0, 1)
        report(1, value)
        return value
    return Problem(name="noisy", train=train, metric="score", higher_is_better=True)
"""


def test_the_command_line_says_what_it_adds_and_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noisy.py").write_text(NOISY)
    options = {"methods": "sgd,adamw", "trials": 1, "margin": 0, "workers": 1}
    texts = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = CliRunner().invoke(app, ["compare", "noisy.py:problem", "--until-clear", *texts])
    assert done.exit_code == 0, done.output
    assert "then up to 40 seeds of a method, where they decide" in done.stderr
    assert "look 1 of at most 4: adamw on noisy: 5 -> 10 seeds (not settled), sgd on noisy: 5 -> 10" in done.stderr
    assert "[13/22, " in done.stderr  # the total has grown
    said = "each is judged at 98.75%, so that all looks hold together at 95%"
    assert said in " ".join(done.stdout.split()) and said in (tmp_path / "polyak-report.html").read_text()


def test_seeds_are_carried_along_when_more_is_known_of_a_problem():
    campaign = campaign_of(quadratic(), most_seeds=9)
    looked_at = campaign.with_problems([replace(each, fingerprint="x") for each in campaign.problems])
    assert looked_at.most_seeds == campaign.with_counts(2, 3).most_seeds == 9
    assert campaign.identity != campaign_of(quadratic()).identity != campaign_of(quadratic(), most_seeds=8).identity
