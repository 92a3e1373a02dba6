"""The runs of a comparison: what stops it, and what a store that was made before is worth."""

from dataclasses import replace

import pytest

from polyak.lab.campaign import Campaign
from polyak.lab.comparison import Unwatched
from polyak.lab.entries import entries
from polyak.lab.errors import LabError
from polyak.lab.loops import Outcome
from polyak.lab.places import Places
from polyak.lab.problems import load
from polyak.lab.runner import make_runs
from polyak.lab.stopping import answers
from polyak.lab.store import Store

FILE = """
import time
from polyak.lab import Problem
from torch import nn

def made(name, action):
    def train(make_optimizer, seed, report, split):
        make_optimizer(nn.Linear(2, 1))
        report(4, 0.75)
        report(8, 0.25)
        if action:
            action()
        return 0.25
    return Problem(name=name, train=train, metric="m", higher_is_better=False, target=0.5)

def fails():
    raise OSError("the data are gone")

def sound():
    return made("sound", None)

def failing():
    return made("failing", fails)

def hanging():
    return made("hanging", lambda: time.sleep(600))
"""


@pytest.fixture
def problem(tmp_path):
    (tmp_path / "own.py").write_text(FILE)
    return lambda name: load(f"{tmp_path}/own.py:{name}")


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "runs.db")
    yield opened
    opened.close()


class Ends(Unwatched):
    def __init__(self):
        self.ends = []

    def ended(self, record, here):
        self.ends.append((record.status, here))


def test_a_problem_that_only_fails_stops_the_comparison(problem, store):
    watcher = Ends()
    with pytest.raises(LabError, match=r"failing fails in every run: OSError: the data are gone \(line"):
        make_runs(Campaign([problem("failing")], entries(["sgd"]), 10, 5), store, Places(1), watcher)
    assert watcher.ends == [("failed", True)] * 3


def test_a_run_that_takes_too_long_is_tried_again_by_a_later_command(problem, store):
    campaign = Campaign([problem("hanging")], entries(["sgd"]), 1, 1)
    records = make_runs(campaign, store, Places(1, timeout=1.0), Unwatched())
    (record,) = records.values()
    assert record.status == "timeout" and "longer than 1 s" in record.detail["reason"]
    assert [run.status for run in store.runs()] == ["timeout"] and store.settled() == []


def test_stored_runs_have_the_names_and_the_target_of_today(problem, store):
    loaded = problem("sound")
    first = make_runs(Campaign([loaded], entries(["sgd"]), 1, 1), store, Places(1), Unwatched())
    assert [record.detail["target_step"] for record in first.values()] == [8, 8]
    today = replace(loaded, problem=replace(loaded.problem, name="today", target=0.8))
    watcher = Ends()
    again = make_runs(Campaign([today], entries(["sgd"]), 1, 1), store, Places(1), watcher)
    assert watcher.ends == [("finished", False)] * 2
    assert again.keys() == first.keys()
    assert [(record.problem, record.detail["target_step"]) for record in again.values()] == [("today", 4)] * 2


STOPPED = Outcome("stopped", None, {"validation": [[4, 0.75]], "timing": {"validation_seconds": [0.1]}})


def test_a_run_that_another_comparison_stopped_is_made_where_no_bar_stops_it(problem, store):
    campaign = Campaign([problem("sound")], entries(["sgd"]), 1, 1)
    (trial,) = campaign.due({})
    store.claim(trial)
    store.finish(trial, STOPPED)
    watcher = Ends()
    records = make_runs(campaign, store, Places(1), watcher)
    assert watcher.ends == [("finished", True)] * 2
    assert [record.metric for record in records.values()] == [0.25, 0.25]
    assert [record.status for record in store.settled()] == ["finished"] * 2


def test_a_stopped_run_answers_for_bars_that_stop_it_too(problem, store):
    loaded = problem("sound")
    (trial,) = Campaign([loaded], entries(["sgd"]), 1, 1).due({})
    store.claim(trial)
    record = store.finish(trial, STOPPED)
    barred = {bars: replace(trial, bars=bars) for bars in (((3, 0.5),), ((3, 0.8),), ((5, 0.5),), ())}
    assert [answers(loaded.problem, spec, record) for spec in barred.values()] == [True, False, False, False]
    assert all(answers(loaded.problem, spec, replace(record, status="diverged")) for spec in barred.values())
