"""transformers and accelerate: their loops, killed in the middle and resumed, give the uninterrupted weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tests import ranks
from tests.optim.training import assert_same, weights
from tests.optim.transformers_worker import BATCH, STEPS, model_of, optimizer_of, samples

CASES = ["adamw:1", "lion:2", "muon:1"]
ACCELERATED = ["adan", "muon"]
SCALED = ["adamw", "muon"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a process was killed in each case, and another went on."""
    folder = tmp_path_factory.mktemp("transformers")
    cases = [f"{what}:{case}" for what in ("interrupted", "straight", "resumed") for case in CASES]
    cases += [f"accelerate_{what}:{name}" for what in ("cut", "straight", "resumed") for name in ACCELERATED]
    ranks.launch(
        "optim.transformers_worker", folder, *cases, *(f"accelerate_infinite:{name}" for name in SCALED), world=1
    )
    return folder


@pytest.mark.parametrize("case", CASES)
def test_trainer_killed_and_resumed(done: Path, case: str) -> None:
    straight = ranks.result(done, f"straight:{case}")
    start = weights(model_of())
    assert all(not torch.equal(value, start[name]) for name, value in straight.items())
    assert_same(ranks.result(done, f"resumed:{case}"), straight, rtol=0)


@pytest.mark.parametrize("method", ACCELERATED)
def test_accelerate_killed_and_resumed(done: Path, method: str) -> None:
    straight = ranks.result(done, f"accelerate_straight:{method}")
    assert_same(ranks.result(done, f"accelerate_resumed:{method}"), straight, rtol=0)


def by_hand(method: str) -> dict[str, Tensor]:
    """accelerate's loop without accelerate."""
    model = model_of()
    optimizer, schedule = optimizer_of(method, model)
    batches = list(DataLoader(samples(), BATCH))
    for step in range(STEPS):
        for half in (0, 1):
            (model(**batches[(2 * step + half) % len(batches)]).loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return weights(model)


@pytest.mark.parametrize("method", ACCELERATED)
def test_accelerate_is_our_loop(done: Path, method: str) -> None:
    assert_same(ranks.result(done, f"accelerate_straight:{method}"), by_hand(method), rtol=1e-4)


@pytest.mark.parametrize("method", SCALED)
def test_accelerate_reports_a_skipped_step(done: Path, method: str) -> None:
    history, counts = ranks.result(done, f"accelerate_infinite:{method}")
    assert history == [(False, True), (False, True), (True, False), (False, True)]
    assert counts == {3.0}
