"""Runs as tasks of Ray: who is refused, and a comparison on a cluster of two nodes that loses a process."""

import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from polyak.lab import compare, ray_pool
from polyak.lab.errors import BadInput, LabError
from polyak.lab.places import Places
from polyak.lab.pool import Progress, Refused
from polyak.lab.spec import versions
from polyak.lab.store import Store

FILE = """
import os, time
from pathlib import Path
from polyak.lab import Problem
from torch import nn

HERE = Path(__file__).parent

def problem():
    def train(make_optimizer, seed, report, split):
        make_optimizer(nn.Linear(2, 1))
        if seed == 1:  # its process dies once
            try:
                (HERE / "died").touch(exist_ok=False)
                os._exit(7)
            except FileExistsError:
                pass
        if seed == 2:
            os._exit(7)
        if seed == 3:
            time.sleep(2.0)  # words are a second apart
            report(4, 1.0)
            time.sleep(600)
        time.sleep(1.0)
        return 1.0 + seed
    return Problem(name="mine", train=train, metric="m", higher_is_better=False)
"""


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r'this needs ray: pip install "polyak\[ray\]"'):
        ray_pool.RayPool(Places(engine="ray"))


def test_a_node_with_another_version_is_refused():
    answer = ray_pool._answer(SimpleNamespace(), {**versions(), "torch": "1.0"}, None)
    assert isinstance(answer, Refused) and "instead of 1.0; install there what is installed here" in answer.line


def test_a_run_is_late_by_its_own_clock_or_when_nothing_is_heard():
    task = ray_pool._Task(SimpleNamespace(key="a"))
    assert not ray_pool._is_late(task, 5.0)  # it waits for its turn
    task.heard, task.beat = time.monotonic(), ray_pool._Beat(4.0, Progress(3, None))
    assert not ray_pool._is_late(task, 5.0)
    task.beat = ray_pool._Beat(6.0, Progress(3, None))
    assert ray_pool._is_late(task, 5.0)
    task.heard, task.beat = time.monotonic() - 66.0, ray_pool._Beat(4.0, Progress(3, None))
    assert ray_pool._is_late(task, 5.0) and not ray_pool._is_late(task, 50.0)


def test_a_silent_run_still_says_how_long_it_takes(monkeypatch):
    monkeypatch.setattr(ray_pool, "BEAT_SECONDS", 0.001)
    told, enough = [], threading.Event()

    def tell(key, beat):
        told.append((key, beat))
        if len(told) == 3:
            enough.set()

    board = SimpleNamespace(tell=SimpleNamespace(remote=tell))
    with ray_pool._Pulse(board, SimpleNamespace(key="a")) as pulse:
        pulse.take(Progress(4, 9))
        assert enough.wait(60)
    assert {(key, beat.progress) for key, beat in told} == {("a", Progress(4, 9))}
    seconds = [beat.seconds for _, beat in told]
    assert seconds == sorted(seconds)


class Seen:
    def __init__(self):
        self.ends, self.steps = {}, []

    def began(self, spec):
        pass

    def progress(self, spec, step, steps):
        self.steps.append(step)

    def ended(self, record, here):
        self.ends[record.split, record.seed] = record.status


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.mark.slow
def test_two_nodes_make_a_comparison(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_pool, "RETRIES", 1)
    (tmp_path / "own.py").write_text(FILE)
    seen, store = Seen(), tmp_path / "runs.db"
    found = compare(
        f"{tmp_path}/own.py:problem", "sgd", trials=1, seeds=3, store=store,
        engine="ray", address=cluster.address, timeout=20, watcher=seen,
    )  # fmt: skip
    # Ray makes seed 1 again, gives seed 2 up and is told to end seed 3.
    assert seen.ends == {
        ("validation", 0): "finished",
        ("test", 1): "finished",
        ("test", 2): "crashed",
        ("test", 3): "timeout",
    }
    assert found.report.problems[0].methods[0].metrics == {1: 2.0} and (tmp_path / "died").exists()
    assert 4 in seen.steps
    opened = Store(store, read_only=True)
    reasons = {record.status: record.detail.get("reason") for record in opened.runs()}
    opened.close()
    assert reasons["timeout"] == "it took longer than 20 s; it was last heard of at step 4"
    assert reasons["crashed"].endswith("2 times")


@pytest.mark.slow
def test_an_address_that_does_not_answer(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_pool, "ANSWER_SECONDS", 5.0)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(LabError, match=f"no Ray cluster answers at '{address}' within 5 s; `ray start --head`"):
            ray_pool.RayPool(Places(engine="ray", address=address))
