"""Worker processes: what they run, and how they end."""

import os
import textwrap
import time

import pytest

from polyak.lab import pool as pool_module
from polyak.lab.check import look
from polyak.lab.entries import entries
from polyak.lab.errors import BadInput, LabError
from polyak.lab.places import Places
from polyak.lab.planning import plan
from polyak.lab.pool import Pool
from polyak.lab.problems import load
from polyak.lab.spec import RunSpec

FILE = """
import os, sys, time
from polyak.lab import Problem
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return float(i)

def loop(action):
    def train(make_optimizer, seed, report, split):
        model = nn.Linear(2, 1)
        make_optimizer(model)
        if seed:  # not yet when the problem is looked at
            report(7, 1.0)
            time.sleep(action == "hang" and 1.5)
            report(8, 1.0)
            {"exit": lambda: os._exit(7), "hang": lambda: time.sleep(600)}.get(action, bool)()
        def collate(items):  # local, so it cannot be pickled
            return sum(items)
        return sum(float(x) for x in DataLoader(Numbers(), batch_size=4, num_workers=2, collate_fn=collate))
    return lambda: Problem(name=action, train=train, metric="m", higher_is_better=False)

exit, hang, loader = loop("exit"), loop("hang"), loop("loader")

def unlike():
    def train(make_optimizer, seed, report, split):
        make_optimizer(nn.Linear(1 + int.from_bytes(os.urandom(2), "big"), 1))
        return 0.0
    return Problem(name="unlike", train=train, metric="m", higher_is_better=False)
"""

BROKEN = """
def broken():
    return Problem(name="b", train=lambda *a: 1 / 0, metric="m", higher_is_better=True)
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "own.py").write_text(textwrap.dedent(FILE))
    return str(tmp_path / "own.py")


def spec_of(file, function, seed=1, **changes):
    loaded = load(f"{file}:{function}")
    run = (loaded.reference, loaded.problem.name, loaded.source("test"), "sgd", {"lr": 0.1}, seed, "test", None)
    return RunSpec(*run, **changes)


def finished(pool, count=1, seconds=120):
    found, deadline = [], time.monotonic() + seconds
    while len(found) < count:
        assert time.monotonic() < deadline, "waited in vain"
        found += pool.ended(0.2)
    return [outcome for _, outcome in found]


def test_a_worker_runs_what_plain_python_runs(file):
    """A Dataset of the problem's file and a local collate function, with loader workers."""
    with Pool(Places(1)) as pool:
        pool.begin(spec_of(file, "loader"))
        (outcome,) = finished(pool)
    assert (outcome.status, outcome.metric) == ("finished", 28.0), outcome.detail


def test_a_run_that_hangs_is_ended_and_the_next_one_is_made(file, monkeypatch):
    told = []
    with Pool(Places(1, timeout=4.0), told=lambda *word: told.append(word[1:])) as pool:
        pool.begin(spec_of(file, "hang"))
        (outcome,) = finished(pool)
        assert outcome.status == "timeout" and outcome.metric is None
        assert outcome.detail["reason"] == "it took longer than 4 s; it was last heard of at step 8"
        assert outcome.detail["step"] == 8 and told == [(0, None), (8, None)]
        pool.begin(spec_of(file, "loader", 2))
        assert finished(pool)[0].status == "finished"


def test_a_crash_has_a_reason_and_a_step(file):
    with Pool(Places(1)) as pool:
        pool.begin(spec_of(file, "exit"))
        (outcome,) = finished(pool)
    assert outcome.status == "crashed"
    assert outcome.detail["reason"] == "the worker process ended with exit code 7"


def test_a_problem_that_differs_between_processes_is_refused(file):
    with (
        Pool(Places(1)) as pool,
        pytest.raises(LabError, match="unlike is not the same in every process: its data, splits"),
    ):
        pool.begin(spec_of(file, "unlike", fingerprint=look(load(f"{file}:unlike"), entries(["sgd"])).fingerprint))
        finished(pool)


def test_a_problem_that_changed_is_refused(file):
    spec = spec_of(file, "loader")
    with open(file, "a") as more:
        more.write("\nx = 1\n")
    with (
        Pool(Places(1)) as pool,
        pytest.raises(LabError, match="changed after the comparison had begun; start it again"),
    ):
        pool.begin(spec)
        finished(pool)


def test_a_look_at_what_does_not_run_is_one_line(file):
    with open(file, "a") as more:
        more.write(BROKEN)
    with pytest.raises(BadInput, match=r"b fails: ZeroDivisionError: division by zero \(line \d+ of .*own\.py\)"):
        look(load(f"{file}:broken"), entries(["sgd"]))


def test_no_worker_and_no_output_is_left(file, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module.tempfile, "tempdir", str(tmp_path))
    with Pool(Places(2)) as pool:
        pool.begin(spec_of(file, "hang"))
        pool.begin(spec_of(file, "loader"))
        finished(pool)
        pids = [worker._process.pid for worker in pool._workers]
        assert len(list(tmp_path.glob("polyak-worker-*"))) == 2
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert not list(tmp_path.glob("polyak-worker-*"))


STATE = """
from polyak.lab import Problem
from torch import nn

ORDER = [5, 3, 1, 2]

def problem():
    def train(make_optimizer, seed, report, split):
        ORDER.append(ORDER.pop(0))
        model = nn.Linear(2, 1)
        optimizer = make_optimizer(model)
        (ORDER[0] * model.weight.sum()).backward()
        optimizer.step()
        return ORDER[0]
    return Problem(name="state", train=train, metric="m", higher_is_better=False)
"""


@pytest.mark.slow
def test_runs_that_leave_something_behind_get_a_process_each(tmp_path):
    (tmp_path / "state.py").write_text(STATE)
    loaded = load(f"{tmp_path}/state.py:problem")
    with pytest.warns(UserWarning, match="state: a run changes something outside it that the next one finds"):
        campaign = plan(loaded.reference, "sgd", 2, 1)
    specs = campaign.due({})
    with Pool(Places(1)) as pool:
        metrics = []
        for spec in specs:
            pool.begin(spec)
            outcomes = []
            while not outcomes:
                outcomes = pool.ended(5.0)
            metrics.append(outcomes[0][1].metric)
    assert metrics == [1.0] * 2  # the second of the order: the fingerprint had the first
