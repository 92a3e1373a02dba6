"""DistributedDataParallel: averages are alike on all ranks, over a kill and over a step that a GradScaler skips."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyak.teachers import EMA, Warmup
from tests import ranks
from tests.optim.training import STEPS, assert_same, build, net, train

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")

WORKER = "teachers.ddp_worker"
PLACEMENTS = ["after_step", "before_forward"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks trained, saved and were killed, and two new ones went on."""
    folder = tmp_path_factory.mktemp("ddp")
    before = [f"{case}:{when}" for when in PLACEMENTS for case in ("straight", "saved", "infinite")]
    ranks.launch(WORKER, folder, *before, "killed", expect=ranks.KILLED)
    ranks.launch(WORKER, folder, *(f"resumed:{when}" for when in PLACEMENTS))
    return folder


def alone(when: str, skip: int = -1) -> tuple[dict[str, Tensor], int]:
    model = net()
    optimizer = build("cadamw", model)
    ema = EMA(model, Warmup(0.9), start="teacher").attach(optimizer, when)
    for step in range(STEPS):
        if step != skip:
            train(model, optimizer, step, step + 1)
    return {name: value.detach() for name, value in ema.averages[0].items()}, ema.step


@pytest.mark.parametrize("when", PLACEMENTS)
def test_two_ranks_are_one_process(done: Path, when: str) -> None:
    got, want = ranks.result(done, f"straight:{when}"), alone(when)
    assert_same(got[0], want[0])
    assert got[1] == want[1] == STEPS


@pytest.mark.parametrize("when", PLACEMENTS)
def test_killed_and_resumed(done: Path, when: str) -> None:
    got, want = ranks.result(done, f"resumed:{when}"), ranks.result(done, f"straight:{when}")
    assert_same(got[0], want[0], rtol=0)
    assert got[1] == want[1]


def test_scaler_skips_on_all_ranks(done: Path) -> None:
    got, want = ranks.result(done, "infinite:after_step"), alone("after_step", STEPS // 2)
    assert_same(got[0], want[0])
    assert got[1] == want[1] == STEPS - 1
