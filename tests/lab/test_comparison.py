"""Whole comparisons in processes of their own: killed, crashed, interrupted, shared, out of space."""

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import pytest

from polyak.lab.store import Store
from tests.lab.conftest import polyak, report_data, without_times

PYTHON = sys.executable

# Slow enough per run that a kill at a random moment hits the middle of things.
SLOW = """
import time
from dataclasses import replace
from polyak.lab import Problem
from polyak.lab.problems import load

def problem():
    rosenbrock = load("rosenbrock").problem

    def loss(model, batch):
        time.sleep(0.002)
        return rosenbrock.loss(model, batch)

    return replace(rosenbrock, name="slow", loss=loss)
"""

# A run does not go on before workers of two commands have begun one.
MEETING = """
import os, time
from dataclasses import replace
from pathlib import Path
from polyak.lab.problems import load

def problem():
    rosenbrock = load("rosenbrock").problem

    def loss(model, batch):
        Path(f"here-{os.getppid()}").touch()
        while len(list(Path().glob("here-*"))) < 2:
            time.sleep(0.01)
        return rosenbrock.loss(model, batch)

    return replace(rosenbrock, name="meeting", loss=loss)
"""

TRICKY = """
import os, signal
from dataclasses import replace
import torch
from polyak.lab.problems import load

def problem():
    rosenbrock = load("rosenbrock").problem

    def loss(model, batch):
        seed = torch.initial_seed()
        if seed == 1:
            raise RuntimeError("seed 1 always fails")
        if seed == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if seed == 3:
            print("last words", flush=True)
            os._exit(7)
        return rosenbrock.loss(model, batch)

    return replace(rosenbrock, name="tricky", loss=loss)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.py").write_text(textwrap.dedent(SLOW))
    (tmp_path / "meeting.py").write_text(textwrap.dedent(MEETING))
    (tmp_path / "tricky.py").write_text(textwrap.dedent(TRICKY))
    return tmp_path


def command(
    *problems, methods="adamw,lion", trials=2, seeds=2, steps=20, workers=2, store="runs.db", report="report.html"
):
    numbers = {"methods": methods, "trials": trials, "seeds": seeds, "steps": steps, "workers": workers}
    options = {**numbers, "store": store, "report": report}
    given = (text for name, value in options.items() for text in (f"--{name}", str(value)))
    return ["compare", *problems, "--no-timing", *given]


def start(arguments):
    """The command as a background process that leads a process group of its own."""
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    heard = {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen(
        [PYTHON, "-m", "polyak.cli", *arguments], **heard, **quiet
    )  # a background job ignores SIGINT


def ended(store):
    """When each ended run of a store ended."""
    if not store.exists():
        return {}
    try:
        with sqlite3.connect(store) as db:
            return dict(db.execute("SELECT key, ended FROM runs WHERE status != 'running'"))
    except sqlite3.OperationalError:  # killed before the table was made
        return {}


def stored():
    """The runs in the store, whatever their state."""
    store = Store(Path("runs.db"), read_only=True)
    try:
        return store.runs()
    finally:
        store.close()


def wait_until(condition, seconds=250):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def moved_on(process, store, before):
    return process.poll() is not None or len(ended(store)) > before


def figures(page):
    return without_times(report_data(page))


def killed_at_random(here, kills):
    """Kill the command again and again, then let it finish; returns how many kills found it at work.

    Every other time the moment counts from the start, so that imports and set-up are hit too, and every other time
    from the end of a run, so that there is progress however slow the machine is.
    """
    arguments = command("slow.py:problem", trials=4, seeds=4, steps=100)
    moments, hits, before = random.Random(0), 0, {}
    for i in range(kills):
        process = start(arguments)
        if i % 2:
            wait_until(partial(moved_on, process, here / "runs.db", len(before)))
            time.sleep(moments.uniform(0, 0.5))
        else:
            time.sleep(moments.uniform(0, 3))
        if process.poll() is None:
            hits += 1
            os.kill(process.pid, signal.SIGKILL) if i % 4 < 2 else os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        after = ended(here / "runs.db")
        assert before.items() <= after.items(), "a finished run was lost or made again"
        before = after
    done = polyak(*arguments)
    assert done.returncode == 0, done.stderr
    final = ended(here / "runs.db")
    assert before.items() <= final.items() and len(final) == 16
    reference = polyak(
        *command("slow.py:problem", trials=4, seeds=4, steps=100, store="other.db", report="other.html", workers=1)
    )
    assert reference.returncode == 0, reference.stderr
    assert figures(here / "report.html") == figures(here / "other.html")
    return hits


@pytest.mark.slow
def test_killed_three_times(here):
    assert killed_at_random(here, 3) >= 2


@pytest.mark.slow
def test_killed_at_twenty_random_moments(here):
    assert killed_at_random(here, 20) >= 10


@pytest.mark.slow
def test_a_killed_command_leaves_no_worker_behind(here):
    process = start(command("slow.py:problem", steps=10_000))
    wait_until(lambda: len(children(process.pid)) >= 2)
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except FileNotFoundError:
        pytest.skip("needs Linux's list of child processes")


def test_ctrl_c_keeps_what_is_done_and_says_so(here):
    arguments = command("slow.py:problem", trials=4, steps=100)
    process = start(arguments)
    wait_until(lambda: ended(here / "runs.db"))
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=250)[0].decode()
    assert process.returncode == 130, output
    assert "the same command goes on" in output and "Traceback" not in output
    assert not (here / "report.html").exists()
    runs = stored()
    assert runs and {run.status for run in runs} <= {"finished", "diverged"}  # claims were given back


@pytest.mark.slow
def test_two_commands_on_one_store_share_the_work(here):
    """Each is at work before the other's first run ends."""
    both = [start(command("meeting.py:problem", trials=4, report=f"{name}.html")) for name in "ab"]
    outputs = [process.communicate(timeout=500)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert figures(here / "a.html") == figures(here / "b.html")
    made = [sum(f"/{12}, " in line for line in output.splitlines()) for output in outputs]
    assert sum(made) == 12 == len(ended(here / "runs.db"))  # each run was made by one of them
    assert min(made) > 0


@pytest.mark.slow
def test_crashes_and_failures_do_not_stop_the_others(here):
    arguments = command("rosenbrock", "tricky.py:problem", methods="adamw", seeds=4)
    first = polyak(*arguments)
    assert first.returncode == 1
    assert "RuntimeError: seed 1 always fails" in first.stderr and "in loss" in first.stderr
    assert "signal 11 (SIGSEGV)" in first.stderr
    assert "exit code 7\nlast words" in first.stderr
    runs = stored()
    statuses = {run.seed: run.status for run in runs if run.problem == "tricky" and run.split == "test"}
    assert statuses == {1: "failed", 2: "crashed", 3: "crashed", 4: "finished"}
    assert all(run.status in ("finished", "diverged") for run in runs if run.problem == "rosenbrock")
    before = ended(here / "runs.db")
    polyak(*arguments)
    after = ended(here / "runs.db")
    again = {run.seed for run in runs if before[run.key] != after[run.key]}
    assert again == {1, 2, 3}  # what failed is tried again by the next command, the rest is kept


@pytest.mark.slow
def test_a_full_disk_while_running(here):
    polyak(*command("rosenbrock", trials=1, seeds=1))
    kept, page = ended(here / "runs.db"), (here / "report.html").read_text()
    limit = max((here / "runs.db").stat().st_size, 32_768) + 4096  # SQLite itself needs 32 KiB beside the store

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    full = polyak(*command("rosenbrock", trials=4, seeds=4), preexec_fn=small_disk)
    assert full.returncode == 1
    assert "cannot write the store 'runs.db'" in full.stderr and "are kept" in full.stderr
    assert "Traceback" not in full.stderr
    assert kept.items() <= ended(here / "runs.db").items()
    assert (here / "report.html").read_text() == page
    assert not list(here.glob(".report*"))


@pytest.mark.slow
def test_a_disk_that_has_no_room_for_the_report(here):
    arguments = command("rosenbrock", methods="sgd,adam,adamw,lion", trials=1, seeds=1, steps=300)
    assert polyak(*arguments).returncode == 0
    page = (here / "report.html").read_text()
    limit = len(page) - 100
    assert limit > 32_768  # which SQLite needs even for a store that is complete

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    full = polyak(*arguments, preexec_fn=small_disk)
    assert full.returncode == 1, full.stderr
    assert "cannot write the report 'report.html': File too large; all runs are kept" in full.stderr
    assert (here / "report.html").read_text() == page and not list(here.glob(".report*"))


WITHOUT_GUARD = """
from polyak.lab import Problem, compare
from torch import nn

def problem():
    def train(make_optimizer, seed, report, split):
        make_optimizer(nn.Linear(2, 1))
        report(1, 1.0 + seed)
        return 1.0 + seed
    return Problem(name="mine", train=train, metric="m", higher_is_better=False)

found = compare(f"{__file__}:problem", "sgd", trials=1, seeds=2, store="runs.db", workers=2)
print("medians", [method.median for method in found.report.problems[0].methods])
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_may_compare_its_own_problem(here):
    (here / "script.py").write_text(WITHOUT_GUARD)
    done = subprocess.run([PYTHON, "script.py"], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "medians [2.5]\n"), done.stderr


def test_a_bug_in_the_test_branch_shows_before_any_run(here):
    text = SLOW.replace("loss=loss)", "loss=loss, evaluate=lambda model, split: {'validation': 0.5}[split])")
    (here / "slow.py").write_text(text)
    done = polyak(*command("slow.py:problem"))
    assert done.returncode == 2
    assert done.stderr.startswith("polyak: error: slow fails: KeyError: 'test' (line ") and done.stderr.count("\n") == 1
    assert not (here / "runs.db").exists()
