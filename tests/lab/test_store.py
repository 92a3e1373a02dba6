"""The store: claims, take-overs, and what happens when the file cannot be written."""

import os
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from polyak.lab import store as store_module
from polyak.lab.errors import LabError
from polyak.lab.spec import RunSpec
from polyak.lab.store import Store, this_process
from polyak.lab.train import Outcome

SPEC = RunSpec("here", "quadratic", "digest", "adamw", {"lr": 0.1, "betas": (0.9, 0.99)}, 0, "validation", 30)
DONE = Outcome("finished", 0.5, {"train": [[1, 2.0]]})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


@pytest.fixture
def store(path):
    opened = Store(path)
    yield opened
    opened.close()


def another(path, owner=None):
    """The same store as another process sees it."""
    other = Store(path)
    other.owner = owner or f"{this_process().rsplit(' ', 2)[0]} {os.getppid()} {store_module._start_time(os.getppid())}"
    return other


def test_claim_finish_and_find(store, path):
    assert store.claim(SPEC) == "mine"
    record = store.finish(SPEC, DONE)
    assert (record.key, record.status, record.metric) == (SPEC.key, "finished", 0.5)
    assert record.setting == {"lr": 0.1, "betas": [0.9, 0.99]}
    assert store.claim(SPEC) == record == another(path).claim(SPEC)
    assert store.settled() == [record]


def test_a_claim_of_a_living_process_is_busy(store, path):
    other = another(path)
    assert other.claim(SPEC) == "mine"
    assert store.claim(SPEC) == "busy"
    assert store.claim(replace(SPEC, seed=1)) == "mine"
    assert store.settled() == []


def test_the_claim_of_a_dead_process_is_taken_over(store, path):
    child = subprocess.run([sys.executable, "-c", CLAIM_AND_DIE, str(path)], cwd=os.getcwd(), check=False)
    assert child.returncode == -9
    assert [record.status for record in store.runs()] == ["running"]
    assert store.claim(SPEC) == "mine"


CLAIM_AND_DIE = """
import os, sys
from pathlib import Path
from polyak.lab.spec import RunSpec
from polyak.lab.store import Store
spec = RunSpec("here", "quadratic", "digest", "adamw", {"lr": 0.1, "betas": (0.9, 0.99)}, 0, "validation", 30)
assert Store(Path(sys.argv[1])).claim(spec) == "mine"
os.kill(os.getpid(), 9)
"""


def test_a_later_process_with_the_same_number_is_another_process(store, path):
    host, pid, _ = this_process().rsplit(" ", 2)
    another(path, f"{host} {pid} 12345").claim(SPEC)
    assert store.claim(SPEC) == "mine"


def test_a_claim_of_another_machine_is_stale_when_it_is_not_renewed(store, path, monkeypatch):
    other = another(path, "elsewhere 1 2")
    other.claim(SPEC)
    assert store.claim(SPEC) == "busy"
    now = store_module.time.time()
    monkeypatch.setattr(store_module.time, "time", lambda: now + store_module.STALE_SECONDS - 1)
    other.renew()
    monkeypatch.setattr(store_module.time, "time", lambda: now + store_module.STALE_SECONDS + 1)
    assert store.claim(SPEC) == "busy"
    monkeypatch.setattr(store_module.time, "time", lambda: now + 3 * store_module.STALE_SECONDS)
    assert store.claim(SPEC) == "mine"


def test_closing_gives_claims_back(store, path):
    other = another(path)
    other.claim(SPEC)
    other.close()
    assert store.runs() == []


@pytest.mark.parametrize("status", ["failed", "crashed"])
def test_failures_are_tried_again_by_a_later_command_only(store, path, status):
    store.claim(SPEC)
    failed = store.finish(SPEC, Outcome(status, None, {"error": "why"}))
    assert store.claim(SPEC) == failed
    assert Store(path).claim(SPEC) == "mine"


def test_a_diverged_run_is_settled(store, path):
    store.claim(SPEC)
    diverged = store.finish(SPEC, Outcome("diverged"))
    assert Store(path).claim(SPEC) == diverged


def test_two_claimants_at_once_never_both_win(path):
    Store(path).close()
    specs = [replace(SPEC, seed=seed) for seed in range(50)]
    won = {"a": [], "b": []}
    ready = threading.Barrier(2)

    def claim_all(name, owner):
        mine = another(path, owner)
        ready.wait()
        won[name] = [spec.seed for spec in specs if mine.claim(spec) == "mine"]
        mine._db.close()

    parent = f"{os.getppid()} {store_module._start_time(os.getppid())}"
    host = this_process().rsplit(" ", 2)[0]
    owners = {"a": this_process(), "b": f"{host} {parent}"}
    threads = [threading.Thread(target=claim_all, args=item) for item in owners.items()]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(won["a"] + won["b"]) == list(range(50))


def test_many_may_open_a_new_store_at_once(tmp_path):
    for attempt in range(20):
        opened = []
        ready = threading.Barrier(6)

        def open_one(path=tmp_path / f"{attempt}.db", opened=opened, ready=ready):
            ready.wait()
            opened.append(Store(path).settled())

        threads = [threading.Thread(target=open_one) for _ in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert opened == [[]] * 6


def test_a_full_disk_is_one_clear_line_and_keeps_what_is_there(store, path):
    store.claim(SPEC)
    record = store.finish(SPEC, DONE)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    other = replace(SPEC, seed=1)
    with pytest.raises(LabError, match=r"cannot write the store .*: database or disk is full; the runs .* kept"):
        store.claim(other)
        store.finish(other, Outcome("finished", 1.0, {"train": [[i, 1.0] for i in range(5000)]}))
    assert Store(path).settled() == [record]


def test_a_store_that_turns_read_only(store):
    store._db.execute("PRAGMA query_only = ON")
    with pytest.raises(LabError, match=r"cannot write the store .*readonly database"):
        store.claim(SPEC)


def test_places_where_no_store_can_be(tmp_path):
    for place in (tmp_path / "nowhere" / "runs.db", tmp_path):
        with pytest.raises(LabError, match=r"cannot open the store .*unable to open database file"):
            Store(place)


def test_files_that_are_no_store(tmp_path):
    text = tmp_path / "text.db"
    text.write_text("not a database, but long enough to be looked at as one" * 100)
    with pytest.raises(LabError, match="file is not a database"):
        Store(text)
    foreign = tmp_path / "foreign.db"
    sqlite3.connect(foreign).execute("CREATE TABLE theirs (x)").connection.commit()
    with pytest.raises(LabError, match="not a store of polyak; name another file"):
        Store(foreign)
    assert sqlite3.connect(foreign).execute("PRAGMA journal_mode").fetchone() == ("delete",)  # left as it was


def test_reading_needs_no_right_to_write(store, path):
    store.claim(SPEC)
    store.finish(SPEC, DONE)
    reader = Store(path, read_only=True)
    assert [record.metric for record in reader.runs()] == [0.5]
    with pytest.raises(LabError, match="readonly"):
        reader.claim(replace(SPEC, seed=1))


def test_a_store_of_a_newer_version_is_refused_with_a_way_out(store, path):
    store._db.execute(f"PRAGMA user_version = {store_module.SCHEMA_VERSION + 1}")
    for read_only in (False, True):
        with pytest.raises(LabError, match=r"a newer polyak wrote it \(version 3, not 2\); upgrade polyak, or name"):
            Store(path, read_only=read_only)


def test_a_store_of_version_1_is_read_and_extended(path):
    with sqlite3.connect(path) as old:
        old.execute(store_module.RUNS)
        old.execute("PRAGMA user_version = 1")
        row = ("k", "quadratic", "sgd", "{}", 0, "test", 30, "{}", "finished", 0.5, "{}", "them", 1.0, 2.0)
        old.execute(f"INSERT INTO runs VALUES ({', '.join('?' * len(row))})", row)
    old.close()
    reader = Store(path, read_only=True)
    assert [record.metric for record in reader.runs()] == [0.5] and reader.campaigns() == []
    opened = Store(path)
    assert opened.claim(SPEC) == "mine" and len(opened.runs()) == 2
    opened.begin("a", {"words": 1})
    assert [stored.description for stored in Store(path, read_only=True).campaigns()] == [{"words": 1}]


def test_what_was_compared_is_kept_with_its_runs(store, path):
    for identity, words in (("a", "first"), ("b", "second"), ("a", "again")):
        store.begin(identity, {"words": words})
        store_module.time.sleep(0.01)
    other = replace(SPEC, seed=1)
    for spec in (SPEC, other):
        store.claim(spec)
    done = store.finish(SPEC, DONE)
    for identity, key in (("a", SPEC.key), ("a", other.key), ("a", SPEC.key)):
        store.note(identity, key, "renamed")
    second, first = Store(path, read_only=True).campaigns()
    assert (second.description, second.runs) == ({"words": "second"}, [])
    assert (first.identity, first.description) == ("a", {"words": "again"})
    assert first.runs == [replace(done, problem="renamed")]  # as the comparison calls it; one is under way


DAMAGE = {
    "setting": "'{'",
    "versions": "NULL",
    "detail": "'[1]'",
    "metric": "'much'",
    "detail ": "x'fffe'",
}


@pytest.mark.parametrize("column", DAMAGE)
def test_a_damaged_row_is_left_out_and_made_again(store, path, column):
    other = replace(SPEC, seed=1)
    for spec in (SPEC, other):
        store.claim(spec)
        store.finish(spec, DONE)
    store._db.execute(f"UPDATE runs SET {column} = {DAMAGE[column]} WHERE key = ?", (SPEC.key,))
    reader = Store(path, read_only=True)
    assert [record.key for record in reader.runs()] == [other.key] and reader.unreadable == [SPEC.key]
    assert [record.key for record in store.settled()] == [other.key]
    assert store.claim(SPEC) == "mine"
    store.finish(SPEC, DONE)
    assert len(Store(path).settled()) == 2


def test_a_damaged_claim_is_free(store):
    store.claim(SPEC)
    store._db.execute("UPDATE runs SET owner = NULL")
    assert store.claim(SPEC) == "mine"


def test_a_stopped_run_is_settled(store, path):
    store.claim(SPEC)
    stopped = store.finish(SPEC, Outcome("stopped", None, {"step": 8}))
    assert Store(path).claim(SPEC) == stopped
