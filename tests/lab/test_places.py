"""Where runs are made: what is refused, and which worker gets which device."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from polyak.lab import Problem, compare
from polyak.lab import pool as pool_module
from polyak.lab.comparison import fit
from polyak.lab.errors import BadInput
from polyak.lab.loops import Outcome
from polyak.lab.places import VISIBLE, Places, environment, kind
from polyak.lab.planning import plan
from polyak.lab.pool import Pool
from tests.lab.conftest import campaign_of, quadratic


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"workers": True}, "workers must be at least 1, got True"),
        ({"timeout": 0}, "timeout must be a number of seconds above 0, got 0"),
        ({"timeout": float("nan")}, "timeout must be a number of seconds above 0, got nan"),
        ({"engine": "rai"}, "unknown engine 'rai'; did you mean ray?"),
        ({"address": "auto"}, "the address 'auto' is that of a Ray cluster; add engine 'ray' or leave it out"),
        ({"engine": "ray", "address": "head"}, "address must be auto or HOST:PORT, got 'head'"),
        ({"engine": "ray", "devices": ("cuda:0",)}, "Ray places the runs itself: devices must be cuda or cpu, got"),
        ({"devices": ("gpu",)}, "a device is cpu, cuda:0, cuda:1 and so on, got 'gpu'"),
        ({"devices": ("cuda",)}, "a device is cpu, cuda:0, cuda:1 and so on, got 'cuda'"),
        ({"devices": (0,)}, "a device is cpu, cuda:0, cuda:1 and so on, got 0"),
        ({"devices": ("cuda:1", "cuda:1")}, "the device 'cuda:1' is named twice; workers says how many runs share it"),
        ({"devices": ("cpu", "cuda:0")}, "devices cpu,cuda:0 are of two kinds, which give other figures"),
        ({"devices": ("cuda:0", "cuda:2")}, "there is no device 'cuda:2'; this machine has cuda:0 to cuda:1"),
    ],
)
def test_what_cannot_be_is_one_line(places, words, two_gpus):
    with pytest.raises(BadInput) as refused:
        Places(**places)
    assert str(refused.value).startswith(words) and "\n" not in str(refused.value)


def test_without_cuda_there_is_the_cpu_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match="there is no device 'cuda:0'; this machine has cpu alone, there is no CUDA"):
        Places(devices=("cuda:0",))


def test_one_run_a_device_unless_workers_say_more(two_gpus, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert Places().size == 7
    assert Places(devices=("cuda:0", "cuda:1")).size == 2
    assert Places(5, devices=("cuda:0", "cuda:1")).size == 5


def test_a_worker_sees_its_device_alone(monkeypatch):
    monkeypatch.delenv(VISIBLE, raising=False)
    assert (kind("cuda:1"), environment("cuda:1")) == ("cuda", {VISIBLE: "1"})
    assert (kind("cpu"), environment("cpu")) == ("cpu", {VISIBLE: ""})
    assert (kind(""), environment("")) == ("", {})
    monkeypatch.setenv(VISIBLE, "3, 5")  # this process itself sees these as 0 and 1
    assert environment("cuda:1") == {VISIBLE: "5"}


class FakeWorker:
    """Takes runs and never ends one."""

    def __init__(self, inbox, device):
        self.device, self.spec = device, None

    def begin(self, spec):
        self.spec = spec

    def has_left_others(self):
        return False

    def stop(self):
        pass


def test_devices_are_shared_evenly(two_gpus, monkeypatch):
    monkeypatch.setattr(pool_module, "Worker", FakeWorker)
    runs = [SimpleNamespace(key=str(i)) for i in range(6)]
    with Pool(Places(4, devices=("cuda:0", "cuda:1"))) as pool:
        for spec in runs[:4]:
            assert not pool.full
            pool.begin(spec)
        assert pool.full and pool.keys == set("0123")
        assert Counter(worker.device for worker in pool._workers) == {"cuda:0": 2, "cuda:1": 2}
        on_first = [worker for worker in pool._workers if worker.device == "cuda:0"]
        for worker in on_first:  # both runs of one device end, so the next ones go there
            pool._inbox.put((worker, Outcome("finished")))
        assert len(pool.ended(0.1)) == 2
        for spec in runs[4:]:
            pool.begin(spec)
        assert {worker.spec.key for worker in on_first} == {"4", "5"} and len(pool._workers) == 4


FILE = """
import os
from polyak.lab import Problem
from torch import nn

def problem():
    def train(make_optimizer, seed, report, split):
        make_optimizer(nn.Linear(2, 1))
        return {"m": 1.0, "hidden": float(os.environ.get("CUDA_VISIBLE_DEVICES") == "")}
    return Problem(name="asks", train=train, metric="m", higher_is_better=False)
"""


def test_devices_reach_the_runs_and_the_workers(tmp_path):
    (tmp_path / "asks.py").write_text(FILE)
    places = Places(devices=("cpu",))
    (spec,) = plan(f"{tmp_path}/asks.py:problem", "sgd", 1, 1, places=places).due({})
    assert spec.device == "cpu"
    with Pool(places) as pool:
        pool.begin(spec)
        while not (ended := pool.ended(60.0)):
            pass
    assert ended[0][1].detail["metrics"] == {"hidden": 1.0}  # GPUs


def test_a_declared_problem_is_put_on_the_device():
    declared = quadratic(device="cuda")
    own = Problem(name="own", train=lambda *a: 0.0, metric="m", higher_is_better=False)
    assert (declared.on("cpu").device, declared.on("").device) == ("cpu", "cuda")
    assert own.on("cuda") is own


def test_a_run_on_a_named_device_has_a_key_of_its_own():
    (spec,) = campaign_of(quadratic(), methods=("sgd",), trials=1).due({})
    assert len({spec.key, replace(spec, device="cpu").key, replace(spec, device="cuda").key}) == 3


def test_a_budget_needs_to_know_how_many_runs_a_cluster_makes(tmp_path):
    campaign = campaign_of(quadratic())
    with pytest.raises(BadInput, match="a budget needs workers beside engine 'ray': how many runs the cluster makes"):
        fit(campaign, "1h", tmp_path / "runs.db", Places(engine="ray"))


@pytest.mark.parametrize("places", [{"devices": ("cpu",)}, {"engine": "ray"}, {"timeout": 3.0}])
def test_a_problem_that_only_this_process_knows_is_run_here(places):
    with pytest.raises(BadInput, match=f"{next(iter(places))} needs a process of its own; give the function that"):
        plan(quadratic(), "sgd", 1, 1, places=Places(**places))


def test_rays_nodes_do_not_see_notebooks():
    with pytest.raises(BadInput, match="Ray's nodes do not see a notebook; write its problem to a file"):
        plan(lambda: quadratic(), "sgd", 1, 1, places=Places(engine="ray"))


GPU_FILE = """
import torch
from polyak.lab import Problem
from torch import nn

def problem():
    def train(make_optimizer, seed, report, split):
        make_optimizer(nn.Linear(2, 1).to("cuda"))
        return float(torch.cuda.device_count())
    return Problem(name="counts", train=train, metric="m", higher_is_better=False)
"""


@pytest.mark.gpu
@pytest.mark.slow
def test_a_run_is_made_on_the_gpu(tmp_path):
    found = compare(
        "wine-mlp", ["sgd", "adamw"], trials=1, seeds=1, steps=20, devices="cuda:0", store=tmp_path / "runs.db"
    )
    assert all(method.median is not None for method in found.problems[0].methods)
    (tmp_path / "asks.py").write_text(GPU_FILE)
    found = compare(
        f"{tmp_path}/asks.py:problem", "sgd", trials=1, seeds=1, devices="cuda:0", store=tmp_path / "runs.db"
    )
    assert found.problems[0].methods[0].median == 1.0  # one GPU, whatever the machine has
