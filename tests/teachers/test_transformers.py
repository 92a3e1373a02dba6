"""transformers' Trainer: averages in its own loop, killed in the middle and resumed."""

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from torch import nn
from transformers import TrainerState

from polyak.teachers import EMA, checkpoint
from polyak.teachers.transformers import EMACallback
from tests import ranks
from tests.optim.training import assert_same
from tests.optim.transformers_worker import STEPS
from tests.teachers.nets import net, train

CASES = ["after_step:1", "before_forward:2"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a process was killed in each case, and another went on."""
    folder = tmp_path_factory.mktemp("transformers")
    cases = [f"{what}:{case}" for what in ("interrupted", "straight", "resumed") for case in CASES]
    ranks.launch("teachers.transformers_worker", folder, *cases, "elsewhere:after_step:1", world=1)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed(done: Path, case: str) -> None:
    got, want = ranks.result(done, f"resumed:{case}"), ranks.result(done, f"straight:{case}")
    assert got[1] == want[1] == STEPS
    for mine, theirs in zip(got[0], want[0], strict=True):
        assert_same(mine, theirs, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_evaluated_with_the_averages(done: Path, case: str) -> None:
    _, _, online, average = ranks.result(done, f"straight:{case}")
    assert online != average


def test_a_checkpoint_elsewhere(done: Path) -> None:
    message, found = ranks.result(done, "elsewhere:after_step:1")
    assert "resume_from" in message
    want = ranks.result(done, "straight:after_step:1")
    assert_same(found[0][0], want[0][0], rtol=0)


@pytest.mark.parametrize("when", ["after_step", "before_forward"])
def test_averages_of_a_training_that_failed_are_left_behind(tmp_path: Path, when: str) -> None:
    """The Trainer tells its callbacks of no failure, so the next beginning has to let go."""
    model, args = net(), SimpleNamespace(output_dir=str(tmp_path))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    callback = EMACallback(0.9, when=when)
    callback.on_train_begin(args, TrainerState(), None, model=model, optimizer=optimizer)
    failed = callback.ema
    train(model, optimizer, 0, 2)
    with pytest.raises(FileNotFoundError):
        callback.on_train_begin(args, TrainerState(global_step=2), None, model=model, optimizer=optimizer)
    assert not failed.attached
    with pytest.raises(RuntimeError, match="training begins"):
        _ = callback.ema
    assert not optimizer._optimizer_step_post_hooks and not model._forward_pre_hooks
    callback.on_train_begin(args, TrainerState(), None, model=model, optimizer=optimizer)
    train(model, optimizer, 2, 5)
    assert (failed.step, callback.ema.step) == (2, 3)


class FullyShardedDataParallel(nn.Sequential):
    """Has the name of FSDP1, whose parameters are flat shards."""


def test_nothing_is_saved_while_the_averages_are_swapped() -> None:
    ema = EMA(net(), 0.9)
    with ema.swapped(), pytest.raises(RuntimeError, match="swapped"):
        checkpoint.gather(ema, keep=True)


@pytest.mark.parametrize("kind", ["FSDP1", "ZeRO-3"])
def test_other_shards_than_those_of_fsdp2_are_refused_at_the_beginning(kind: str) -> None:
    model = FullyShardedDataParallel(net()) if kind == "FSDP1" else net()
    if kind == "ZeRO-3":
        model.wide.ds_id = 1
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(RuntimeError, match=kind):
        EMACallback(0.9).on_train_begin(None, TrainerState(), None, model=model, optimizer=optimizer)
    assert not optimizer._optimizer_step_post_hooks
