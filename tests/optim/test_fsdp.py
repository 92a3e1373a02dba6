"""FSDP2: a sharded training is the same training, in every execution mode, over a kill, with gaps in gradients."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

import polyak.optim
from tests import ranks
from tests.optim.training import STEPS, Net, alone, assert_same, build, net, train, weights

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")

HALF = STEPS // 2
METHODS = [
    name
    for name in polyak.optim.names()
    if not any(callable(slot.shape) for slot, _ in polyak.optim.get(name).memories())
]
"""Memories of shapes of their own go with no shard, and are refused there."""
QUICK = ["adamw", "cadamw", "adan", "muon", "adamp", "tam", "momo", "smmf", "scale"]
"""One of each kind: elementwise, sums, sums over all, matrices, rows, memories of one number, the loss, columns."""
REST = [name for name in METHODS if name not in QUICK]
COMPILED = ["cadamw", "adan", "muon"]
SKIPS = ["adamw:2", "adan:2", "lion:2"]
LAST = ["adamw", "cadamw", "adan", "csgdm"]
ENTERS = [f"missing:{name}:2" for name in ("muon", "adamp", "tam", "cadamw", "cadan", "gsm")]
SCALED = ["cadamw", "muon"]
SAVED = ["adamw", "cadamw", "adan", "muon", "tam", "sgd"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one pair of processes left all trainings but those that are killed."""
    folder = tmp_path_factory.mktemp("done")
    cases = [f"equal:{name}:{execution}" for name in QUICK for execution in ("eager", "batched")]
    cases += [f"missing:{case}" for case in SKIPS] + [f"missing:{name}:{STEPS - 1}" for name in LAST] + ENTERS
    cases += [f"infinite:{name}" for name in SCALED] + ["refused:cadamw"]
    ranks.launch("optim.fsdp_worker", folder, *cases)
    return folder


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where another pair left those of all other methods."""
    folder = tmp_path_factory.mktemp("rest")
    cases = [f"equal:{name}:{execution}" for name in REST for execution in ("eager", "batched")]
    ranks.launch("optim.fsdp_worker", folder, *cases)
    return folder


def check_equal(folder: Path, method: str, execution: str) -> None:
    want = alone(method)
    assert all(value.isfinite().all() for value in want.values())
    assert_same(ranks.result(folder, f"equal:{method}:{execution}"), want)


@pytest.mark.parametrize("execution", ["eager", "batched"])
@pytest.mark.parametrize("method", QUICK)
def test_sharded_is_unsharded(done: Path, method: str, execution: str) -> None:
    check_equal(done, method, execution)


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["eager", "batched"])
@pytest.mark.parametrize("method", REST)
def test_sharded_is_unsharded_for_all_others(rest: Path, method: str, execution: str) -> None:
    check_equal(rest, method, execution)


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    cases = (f"equal:{name}:compiled" for name in COMPILED)
    ranks.launch("optim.fsdp_worker", tmp_path, *cases, timeout=900)  # where no kernel was compiled before
    for name in COMPILED:
        assert_same(ranks.result(tmp_path, f"equal:{name}:compiled"), alone(name))


class Cut(Net):
    """The rows of `second.weight` that each rank holds, as two parameters."""

    def __init__(self) -> None:
        super().__init__()
        rows = self.second.weight.detach()
        del self.second.weight
        self.second.weight = rows
        self.upper, self.lower = nn.Parameter(rows[:2].clone()), nn.Parameter(rows[2:].clone())

    def forward(self, x: Tensor, step: int) -> Tensor:
        self.second.weight = torch.cat([self.upper, self.lower])
        return super().forward(x, step)


def skipping_a_row(method: str, step: int) -> dict[str, Tensor]:
    """Rows that are parameters of their own, one of which has no gradient in one step. For methods without sums."""
    torch.manual_seed(0)
    model = Cut()

    def lose(now: int) -> None:
        if now == step:
            model.lower.grad = None

    train(model, build(method, model), meddle=lose)
    out = weights(model)
    out["second.weight"] = torch.cat([out.pop("upper"), out.pop("lower")])
    return out


def zero_in_the_last_step(method: str) -> dict[str, Tensor]:
    """The gradient of the lost row is zero for all sums, and the row stays where it was. For any method."""
    model = net()

    def lose(now: int) -> None:
        if now == STEPS - 1:
            start.append(model.second.weight[2:].detach().clone())
            model.second.weight.grad[2:] = 0

    start: list[Tensor] = []
    train(model, build(method, model), meddle=lose)
    out = weights(model)
    out["second.weight"][2:] = start[0]
    return out


@pytest.mark.parametrize("case", SKIPS)
def test_shard_without_gradient_is_skipped(done: Path, case: str) -> None:
    method, step = case.split(":")
    assert_same(ranks.result(done, f"missing:{case}"), skipping_a_row(method, int(step)))


@pytest.mark.parametrize("method", LAST)
def test_sums_take_zeros_for_a_missing_gradient(done: Path, method: str) -> None:
    assert_same(ranks.result(done, f"missing:{method}:{STEPS - 1}"), zero_in_the_last_step(method))


@pytest.mark.parametrize("case", ENTERS)
def test_rank_without_gradient_enters_every_reduction(done: Path, case: str) -> None:
    assert all(value.isfinite().all() for value in ranks.result(done, case).values())


@pytest.mark.parametrize("method", SCALED)
def test_scaler_skips_on_all_ranks(done: Path, method: str) -> None:
    model = net()
    optimizer = build(method, model)
    train(model, optimizer, 0, HALF)
    train(model, optimizer, HALF + 1, STEPS)
    assert_same(ranks.result(done, f"infinite:{method}"), weights(model))


def test_check_finite_refuses_on_all_ranks(done: Path) -> None:
    said, unchanged = ranks.result(done, "refused:cadamw")
    assert "second.weight" in said[0]
    assert said[0] == said[1]
    assert unchanged


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks trained, saved and were killed, and two new ones went on; and one uninterrupted training."""
    folder = tmp_path_factory.mktemp("killed")
    before = [f"{what}:{name}" for name in SAVED for what in ("straight", "saved")]
    ranks.launch("optim.fsdp_worker", folder, *before, "killed", expect=ranks.KILLED)
    for name in SAVED:
        model = net()
        optimizer = build(name, model)
        train(model, optimizer, 0, HALF)
        torch.save(get_optimizer_state_dict(model, optimizer), folder / f"alone:{name}.pt")
    ranks.launch("optim.fsdp_worker", folder, *(f"{what}:{name}" for name in SAVED for what in ("resumed", "received")))
    return folder


@pytest.mark.parametrize("method", SAVED)
def test_killed_and_resumed(killed: Path, method: str) -> None:
    straight = ranks.result(killed, f"straight:{method}")
    assert_same(ranks.result(killed, f"resumed:{method}"), straight, rtol=1e-15)
    assert_same(straight, alone(method))


@pytest.mark.parametrize("method", SAVED)
def test_checkpoint_of_one_process_into_shards(killed: Path, method: str) -> None:
    assert_same(ranks.result(killed, f"received:{method}"), alone(method))


@pytest.mark.parametrize("method", SAVED)
def test_full_state_into_unsharded(killed: Path, method: str) -> None:
    saved_weights, state = ranks.result(killed, f"saved:{method}")
    model = net()
    model.load_state_dict(saved_weights)
    optimizer = build(method, model)
    set_optimizer_state_dict(model, optimizer, state)
    train(model, optimizer, HALF, STEPS)
    assert_same(weights(model), alone(method))


@pytest.mark.parametrize("method", SAVED)
def test_sharded_checkpoint_into_one_process(killed: Path, method: str) -> None:
    model = net()
    optimizer = build(method, model)
    weights_now, state_now = get_state_dict(model, optimizer)
    state = {"model": weights_now, "optim": state_now}
    dcp.load(state, checkpoint_id=killed / method, no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    train(model, optimizer, HALF, STEPS)
    assert_same(weights(model), alone(method))
