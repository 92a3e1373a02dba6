"""FSDP2: averages of shards are shards of the averages, over a kill, a swap and a NaN on one rank."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyak.teachers import EMA, Power, Warmup
from tests import ranks
from tests.optim.training import assert_same, batch, build, net, train

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")

WORKER = "teachers.fsdp_worker"
KINDS = ["tensors", "module"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks trained, saved and were killed, and two new ones went on."""
    folder = tmp_path_factory.mktemp("fsdp")
    before = [f"{case}:{kind}" for kind in KINDS for case in ("straight", "swapped", "saved")]
    callback = ["called_back"] if find_spec("transformers") else []
    ranks.launch(WORKER, folder, *before, "teaches:module", "refused:tensors", *callback, "killed", expect=ranks.KILLED)
    ranks.launch(WORKER, folder, *(f"resumed:{kind}" for kind in KINDS))
    return folder


def alone() -> list[dict[str, Tensor]]:
    model = net()
    optimizer = build("cadamw", model)
    ema = EMA(model, [Warmup(0.9), Power(0.1)]).attach(optimizer)
    train(model, optimizer)
    return [{name: value.detach() for name, value in average.items()} for average in ema.averages]


def run_with(averages: dict[str, Tensor]) -> Tensor:
    model = net()
    model.load_state_dict(averages)
    with torch.no_grad():
        return model(batch(0)[0], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_averaged_as_the_whole(done: Path, kind: str) -> None:
    for got, want in zip(ranks.result(done, f"straight:{kind}"), alone(), strict=True):
        assert_same(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed(done: Path, kind: str) -> None:
    pairs = zip(ranks.result(done, f"resumed:{kind}"), ranks.result(done, f"straight:{kind}"), strict=True)
    for got, want in pairs:
        assert_same(got, want, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_swapping_shards(done: Path, kind: str) -> None:
    output, restored, averages = ranks.result(done, f"swapped:{kind}")
    assert restored
    torch.testing.assert_close(output, run_with(averages))


def test_a_sharded_teacher_runs(done: Path) -> None:
    output, averages = ranks.result(done, "teaches:module")
    torch.testing.assert_close(output, run_with(averages))


def test_all_ranks_refuse_a_nan_of_one(done: Path) -> None:
    said, unchanged, copied = ranks.result(done, "refused:tensors")
    assert "another rank" in said[0] and "second.weight" in said[1]
    assert unchanged
    assert "FSDP2" in copied and "teacher" in copied


@pytest.mark.skipif(not find_spec("transformers"), reason="needs transformers")
def test_the_callback_saves_whole_averages_and_resumes_shards(done: Path) -> None:
    stored, resumed, averages = ranks.result(done, "called_back")
    assert resumed == [True, True]
    for got, want in zip(stored["averages"], averages, strict=True):
        assert_same(got, want, rtol=0)
    whole = EMA(net(), [Warmup(0.9), Power(0.1)])
    whole.load_state_dict(stored)
    for got, want in zip(whole.averages, averages, strict=True):
        assert_same(got, want, rtol=0)
