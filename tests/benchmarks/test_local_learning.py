"""benchmarks/local_learning.py on a miniature network, its CIFAR-10 loader on a folder in that format, its store."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polyak.local import Greedy, cifar_resnet

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def write_cifar(folder, count=4):
    """A tiny folder in CIFAR-10's binary format; the images."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    written = {}
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        pixels = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        with (folder / name).open("wb") as file:
            for label, image in zip(labels, pixels, strict=True):
                file.write(bytes([label]) + image.tobytes())
        written[name] = labels, pixels
    return written


def test_cifar_folder(module, tmp_path):
    written = write_cifar(tmp_path / "cifar")
    data = module("_local").cifar10(tmp_path / "cifar")
    assert data.x.shape == (20, 3, 32, 32) and data.x_test.shape == (4, 3, 32, 32) and data.x.dtype == torch.float32
    labels, pixels = written["data_batch_3.bin"]
    assert data.y[8:12].tolist() == labels.tolist()
    assert torch.equal((data.x[8:12] * 255).round().to(torch.uint8), torch.from_numpy(pixels))
    assert data.y_test.tolist() == written["test_batch.bin"][0].tolist()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "data_batch_2.bin").unlink(), "data_batch_2.bin is missing"),
        (lambda f: (f / "test_batch.bin").write_bytes(b"\0" * 100), "records of 3073 bytes, got 100 bytes"),
        (lambda f: (f / "test_batch.bin").write_bytes(b""), "records of 3073 bytes, got 0 bytes"),
        (lambda f: (f / "test_batch.bin").write_bytes(b"\x0b" + b"\0" * 3072), "labels from 0 to 9, got 11"),
    ],
)
def test_spoilt_cifar_folder(module, tmp_path, spoil, message):
    write_cifar(tmp_path / "cifar")
    spoil(tmp_path / "cifar")
    with pytest.raises(ValueError, match=message):
        module("_local").cifar10(tmp_path / "cifar")


def test_digits_are_enlarged(module):
    data = module("_local").digits32()
    assert data.x.shape == (1297, 3, 32, 32) and data.x_test.shape == (500, 3, 32, 32)
    assert data.x.min() >= 0 and data.x.max() <= 1
    assert torch.equal(data.x[:, 0], data.x[:, 2])


@pytest.mark.parametrize("recipe", [None, Greedy()])
def test_a_step_gives_the_loss_of_the_whole_network_and_moves_it(module, recipe):
    model, x, y = cifar_resnet(8), torch.rand(4, 3, 8, 8), torch.arange(4)
    expected = F.cross_entropy(model(x), y).item()
    cut = {} if recipe is None else {"num_blocks": 2, "example": x}
    step = module("_local").Step(model, recipe, 0.1, **cut)
    assert (step.network is model) == (recipe is None)
    assert len(step.optimizer.param_groups[0]["params"]) == len(list(step.network.parameters()))
    before = model.conv1.weight.detach().clone()
    assert step(x, y) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(model.conv1.weight, before - 0.1 * 1.9 * (model.conv1.weight.grad + 0.0001 * before))


def test_the_network_of_the_small_proof(module):
    network = module("local_proof").network()
    assert [block.conv1.stride for block in network[3:9]] == [(1, 1), (2, 2), (1, 1), (2, 2), (1, 1), (1, 1)]
    assert network(torch.rand(2, 1, 8, 16)).shape == (2, 10)


def test_store_drops_a_half_written_line(module, tmp_path):
    store = module("_local_store").Store(tmp_path / "a.jsonl")
    store.add({"a": 1}, {"b": 2})
    with store.path.open("a") as file:
        file.write('{"a": 2, "b"')
    again = module("_local_store").Store(tmp_path / "a.jsonl")
    assert again.rows == [{"a": 1, "b": 2}]
    again.add({"a": 3}, {})
    assert module("_local_store").Store(tmp_path / "a.jsonl").find(a=3) == [{"a": 3}]


def run(folder, *options):
    paths = [v for name, file in (("store", "jsonl"), ("json", "json"), ("plot", "svg"))
             for v in (f"--{name}", str(folder / f"r.{file}"))]  # fmt: skip
    command = [sys.executable, str(BENCHMARKS / "local_learning.py"), "--parts", "cost,accuracy", *paths, *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, json.loads((folder / "r.json").read_text())


def test_miniature_and_resume(tmp_path):
    write_cifar(tmp_path / "cifar")
    options = ["--depths", "8", "--blocks", "3", "--cost-batch", "4", "--rounds", "1", "--epochs", "1", "--seeds", "1"]
    options += ["--batch", "10", "--data", str(tmp_path / "cifar")]
    _, first = run(tmp_path, *options, "--methods", "end-to-end,dgl")
    before = (tmp_path / "r.jsonl").read_text()
    printed, second = run(tmp_path, *options, "--methods", "end-to-end,dgl,man")
    assert (tmp_path / "r.jsonl").read_text().startswith(before)  # nothing was done twice
    assert second["cost"][:2] == first["cost"] and second["accuracy"][:2] == first["accuracy"]
    dgl, man = second["cost"][1:]
    assert dgl["memory"] < man["memory"] and 1 < dgl["flops_ratio"] < man["flops_ratio"]
    assert [row["method"] for row in second["accuracy"]] == ["end-to-end", "dgl", "man"]
    assert all(0 <= row["error"] <= 100 and row["data"] == "cifar10" for row in second["accuracy"])
    assert "man at K = 3 on ResNet-8" in printed
    assert "<svg" in (tmp_path / "r.svg").read_text()
