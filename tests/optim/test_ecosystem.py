"""Every method and driver with what is around it: ranks, parts of batches, scalers, layouts, odd weights."""

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from polyak.optim.drivers import DGD
from tests import ranks
from tests.optim.ecosystem import LATE, NAMES, QUICK, READS_LAYERS, STEPS, Net, Run, net, weights
from tests.optim.moves import random
from tests.optim.training import assert_same
from tools.make_ecosystem import refusals_of_shards, refusals_of_tied

LATER = tuple(name for name in NAMES if name not in QUICK)
WHOLE = [slice(None)]
HALVES = [slice(0, 4), slice(4, 8)]
SPOILT = 3
METHODS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
needs_ranks = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")


@functools.cache
def alone(name: str) -> dict[str, Tensor]:
    """The weights after the training of one process, eagerly, on whole batches."""
    model = net(name)
    Run(name, model).train(WHOLE)
    return weights(model)


def launched(folder: Path, names: tuple[str, ...], *more: str) -> Path:
    """Where one pair of processes left the trainings of all these methods."""
    cases = [f"{kind}:{name}:batched" for kind in ("ddp", "fsdp") for name in names]
    ranks.launch("optim.ecosystem_worker", folder, *cases, *more)
    return folder


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launched(tmp_path_factory.mktemp("quick"), QUICK, "uneven:1")


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launched(tmp_path_factory.mktemp("later"), LATER)


@pytest.fixture(scope="module")
def refused() -> dict[str, str]:
    return refusals_of_shards()


def check_ranks(folder: Path, name: str, kind: str, refused: dict[str, str]) -> None:
    found = ranks.result(folder, f"{kind}:{name}:batched")
    if kind == "fsdp" and name in refused:
        assert isinstance(found, str), "it was not refused"
        assert reason(refused[name]) in found.split("\n")[0]
        assert "in _made" in found, f"refused, but not where it is made: {found}"
        return
    assert not isinstance(found, str), found
    assert_same(found, alone(name), rtol=1e-8)


def reason(said: str) -> str:
    """A refusal without the tensor that it is said of."""
    return said.split(" is sharded")[1].split(";")[0]


@needs_ranks
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", QUICK)
def test_two_ranks_are_one_process(quick: Path, refused: dict[str, str], name: str, kind: str) -> None:
    check_ranks(quick, name, kind, refused)


@needs_ranks
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", LATER)
def test_two_ranks_are_one_process_for_all(later: Path, refused: dict[str, str], name: str, kind: str) -> None:
    check_ranks(later, name, kind, refused)


@needs_ranks
def test_rows_of_layers_are_gathered_where_ranks_have_unlike_many(quick: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    optimizer = DGD(model, lr=0.3)
    for step in range(3):
        x, y = random(step, (5, 4), (5, 3))
        optimizer.zero_grad()
        error = (model(x) - y).square().mean(1)
        ((error[0] + error[1:].mean()) / 2).backward()
        optimizer.step()
    assert_same(ranks.result(quick, "uneven:1"), weights(model))


@pytest.mark.parametrize("name", METHODS)
def test_halves_of_a_batch_are_the_batch(name: str) -> None:
    model = net(name)
    Run(name, model, "batched").train(HALVES)
    assert_same(weights(model), alone(name), rtol=1e-9)


@pytest.mark.parametrize("execution", ["eager", "batched"])
@pytest.mark.parametrize("name", METHODS)
def test_channels_last_is_contiguous(name: str, execution: str) -> None:
    last = torch.channels_last
    model: Net = net(name).to(memory_format=last)  # type: ignore[call-overload]
    Run(name, model, execution).train(WHOLE, last)
    assert model.conv.weight.is_contiguous(memory_format=last) and not model.conv.weight.is_contiguous()
    found = weights(model)
    for key, want in alone(name).items():
        torch.testing.assert_close(found[key], want, rtol=1e-12, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", METHODS)
def test_frozen_tied_and_late_weights(name: str) -> None:
    model = net(name)
    run, start = Run(name, model), weights(model)
    for step in range(LATE):
        run.step(step, WHOLE)
    before = weights(model)
    for step in range(LATE, STEPS):
        run.step(step, WHOLE)
    after = weights(model)
    assert all(value.isfinite().all() for value in after.values())
    for key in ("late", "late_gain"):
        assert torch.equal(before[key], start[key]), f"{key} moved before it was added"
        assert not torch.equal(after[key], start[key]), f"{key} stays"
    frozen = ("still",) if name == "periodic_lora" else ("still", "base")  # whose layer it is
    for key in frozen:
        assert torch.equal(after[key], start[key]) and not run.optimizer.state.get(getattr(model, key)), key
    moved = set(after) - {"still", "base"}
    assert all(not torch.equal(after[key], start[key]) for key in moved)
    if name not in READS_LAYERS:
        assert model.head.weight is model.embed.weight
    listed = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in listed}) == len(listed)
    assert set(run.optimizer.state) <= set(listed)


@pytest.mark.parametrize("name", METHODS)
def test_a_tied_layer_is_one_weight_or_refused(name: str) -> None:
    torch.manual_seed(0)
    model = Net(tied=True).double()
    said = refusals_of_tied().get(name, "")
    assert bool(said) == (name in READS_LAYERS)
    if said:
        with pytest.raises(ValueError, match=r"are one weight|and of another module"):
            Run(name, model)


@pytest.mark.parametrize("name", METHODS)
def test_a_scaler_scales_nothing_and_skips(name: str) -> None:
    """Its scale is a power of two: steps in bfloat16 are the same with it as without, but for the one it skips."""
    model, plain = net(name, torch.float32), net(name, torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    run, other = Run(name, model, "batched", scaler), Run(name, plain, "batched")
    for step in range(STEPS):
        run.step(step, WHOLE, spoilt=step == SPOILT)
        if step != SPOILT:
            other.step(step, WHOLE)
    assert scaler.get_scale() == 2.0**9
    found = weights(model)
    assert all(value.isfinite().all() for value in found.values())
    assert_same(found, weights(plain), rtol=1e-6)
