"""DistributedDataParallel: two ranks train as one does, also over a kill and over a step that a GradScaler skips."""

from pathlib import Path

import pytest
import torch

from tests import ranks
from tests.optim.training import STEPS, alone, assert_same, build, net, train, weights

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")

HALF = STEPS // 2
METHODS = ["cadamw", "muon", "adan", "gsm"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks trained, saved and were killed, and two new ones went on."""
    folder = tmp_path_factory.mktemp("ddp")
    before = [f"{case}:{name}" for name in METHODS for case in ("straight", "saved", "infinite")]
    ranks.launch("optim.ddp_worker", folder, *before, "killed", expect=ranks.KILLED)
    ranks.launch("optim.ddp_worker", folder, *(f"resumed:{name}" for name in METHODS))
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_are_one_process(done: Path, method: str) -> None:
    assert_same(ranks.result(done, f"straight:{method}"), alone(method))


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed(done: Path, method: str) -> None:
    assert_same(ranks.result(done, f"resumed:{method}"), ranks.result(done, f"straight:{method}"), rtol=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_scaler_skips_on_all_ranks(done: Path, method: str) -> None:
    model = net()
    optimizer = build(method, model)
    train(model, optimizer, 0, HALF)
    train(model, optimizer, HALF + 1, STEPS)
    assert_same(ranks.result(done, f"infinite:{method}"), weights(model))
