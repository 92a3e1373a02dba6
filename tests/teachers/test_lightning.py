"""Lightning: averages in its own loop, killed in the middle and resumed; validation sees them."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from polyak.teachers import EMA, Warmup
from tests import ranks
from tests.optim.loop import BATCHES, EPOCHS, POISON
from tests.optim.training import assert_same, batch, build, net

needed = importlib.util.find_spec("lightning")
pytestmark = pytest.mark.skipif(needed is None, reason="lightning is not installed")

CASES = ["after_step:1", "before_forward:1", "after_step:2"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a process was killed in each case, and another went on."""
    folder = tmp_path_factory.mktemp("lightning")
    cases = [f"{what}:{case}" for what in ("interrupted", "straight", "resumed") for case in CASES]
    more = ("validated:yes", "validated:no", "infinite", "broken", "tested")
    ranks.launch("teachers.lightning_worker", folder, *cases, *more, world=1)
    return folder


def by_hand(accumulate: int = 1, poison: int = -1) -> Any:
    """Lightning's loop without Lightning: averages, and losses of the first of them after each epoch."""
    model = net()
    optimizer = build("cadamw", model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * BATCHES)
    ema, losses = EMA(model, [Warmup(0.9), 0.8]), []
    for index in range(EPOCHS * BATCHES):
        x, y = batch(index)
        ((model(x, index) - y).square().mean() / accumulate).backward()
        if (index + 1) % accumulate == 0:
            if index != poison:
                optimizer.step()
                ema.update()
            schedule.step()
            optimizer.zero_grad()
        if (index + 1) % BATCHES == 0:
            x, y = batch(0)
            losses.append((ema(x, 0) - y).square().mean())
    return [{n: v.detach() for n, v in average.items()} for average in ema.averages], losses


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed(done: Path, case: str) -> None:
    got, want = ranks.result(done, f"resumed:{case}"), ranks.result(done, f"straight:{case}")
    assert got[1] == want[1] == EPOCHS * BATCHES // int(case[-1])
    for mine, theirs in zip(got[0], want[0], strict=True):
        assert_same(mine, theirs, rtol=0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_updates_follow_real_steps(done: Path, accumulate: int) -> None:
    for got, want in zip(
        ranks.result(done, f"straight:after_step:{accumulate}")[0], by_hand(accumulate)[0], strict=True
    ):
        assert_same(got, want)


def test_a_skipped_step_moves_nothing(done: Path) -> None:
    averages, steps = ranks.result(done, "infinite")
    assert steps == EPOCHS * BATCHES - 1
    assert_same(averages[0], by_hand(poison=POISON)[0][0])


def test_validation_sees_the_average_and_training_does_not(done: Path) -> None:
    losses, averages, weights = ranks.result(done, "validated:yes")
    raw, averages_without, weights_without = ranks.result(done, "validated:no")
    torch.testing.assert_close(torch.stack(losses[-EPOCHS:]), torch.stack(by_hand()[1]))
    assert not torch.allclose(torch.stack(raw[-EPOCHS:]), torch.stack(losses[-EPOCHS:]))
    assert_same(weights, weights_without, rtol=0)
    assert_same(averages, averages_without, rtol=0)


def test_an_exception_in_validation_leaves_the_weights(done: Path) -> None:
    step, exchanged, stored = ranks.result(done, "broken")
    assert step == stored == 2 * BATCHES
    assert not all(exchanged)


def test_a_test_of_a_checkpoint_sees_the_average_of_that_checkpoint(done: Path) -> None:
    seen = ranks.result(done, "tested")
    assert len({steps for *_, steps in seen}) > 1  # several checkpoints, each tested twice
    for loss, of_the_average, step, stored_step in seen:
        assert loss == pytest.approx(of_the_average, rel=1e-6)
        assert step == stored_step
