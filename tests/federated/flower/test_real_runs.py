"""The app of examples/flower under Flower itself: simulated by Ray, and as processes of which the server is killed."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr")
pytest.importorskip("ray")

from flwr.app import ArrayRecord

from polyak.federated.flower import Strategy
from tests.federated.flower.fakes import FakeGrid
from tests.federated.flower.processes import APP, Flower, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROUNDS = 3


def without_flower(monkeypatch, nodes: int) -> dict[str, torch.Tensor]:
    """What the example comes to on the grid in memory."""
    monkeypatch.syspath_prepend(str(APP))
    task, client = (importlib.import_module(f"digits.{name}") for name in ("task", "client_app"))
    grid = FakeGrid(client.app, nodes)
    for context in grid.contexts.values():
        context.node_config["num-partitions"] = nodes
        context.run_config["node-folder"] = ""
    model = task.network()
    strategy = Strategy(task.RULE, model, fraction_evaluate=0.0)
    found = strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=ROUNDS)
    for name in [n for n in sys.modules if n.split(".")[0] == "digits"]:
        del sys.modules[name]
    return dict(found.arrays.to_torch_state_dict())


def done(folder: Path) -> int:
    file = folder / "server.pt"
    return int(torch.load(file, weights_only=True)["done"]) if file.exists() else 0


def result(folder: Path) -> dict[str, torch.Tensor]:
    until((folder / "model.pt").exists, f"the model of {folder}")
    until(lambda: done(folder) == ROUNDS, "the last round", 5)
    return dict(torch.load(folder / "model.pt", weights_only=True))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """But for rounding: nodes have other ids in every run, and so another order in sums."""
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=0, atol=1e-5)


def test_simulated_by_ray(tmp_path, monkeypatch):
    with Flower(tmp_path, simulated=3) as flower:
        flower.run("run", rounds=ROUNDS, fraction_evaluate=0.5, server_folder=str(tmp_path / "server"))
        found = result(tmp_path / "server")
        until(lambda: flower.started["run"].poll() is not None, "the end of the run", 60)
    log = (tmp_path / "run.log").read_text()
    assert "'accuracy'" in log
    assert "WARNING" not in log.split("[ROUND 1")[1].split("Strategy execution finished")[0]
    same(without_flower(monkeypatch, 3), found)


def test_processes_with_a_server_that_is_killed_and_begun_again(tmp_path, monkeypatch):
    folders = {"server_folder": str(tmp_path / "server"), "node_folder": str(tmp_path / "nodes")}
    with Flower(tmp_path) as flower:
        for part in range(2):
            flower.start_node(part, 2)
        flower.run("first", rounds=ROUNDS, fraction_evaluate=0.0, **folders)
        until(lambda: done(tmp_path / "server"), "the first round")
        flower.kill("link")
        flower.kill("first")
        assert done(tmp_path / "server") < ROUNDS
        flower.start_link()
        flower.run("second", rounds=ROUNDS, fraction_evaluate=0.0, **folders)
        found = result(tmp_path / "server")
    same(without_flower(monkeypatch, 2), found)
