"""Lightning: its own loop, killed in the middle and resumed, gives the weights of the uninterrupted run."""

import importlib.util
from pathlib import Path

import pytest

from tests import ranks
from tests.optim.loop import POISON, by_hand
from tests.optim.training import assert_same

needed = importlib.util.find_spec("lightning")
pytestmark = pytest.mark.skipif(needed is None, reason="lightning is not installed")

CASES = ["adan:1:0", "muon:2:0.5", "cadamw:2:0", "cadamw:1:0.5"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a process was killed in each case, and another went on."""
    folder = tmp_path_factory.mktemp("lightning")
    cases = [f"{what}:{case}" for what in ("interrupted", "straight", "resumed") for case in CASES]
    ranks.launch("optim.lightning_worker", folder, *cases, "infinite:muon", "infinite:adan", world=1)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed(done: Path, case: str) -> None:
    assert_same(ranks.result(done, f"resumed:{case}"), ranks.result(done, f"straight:{case}"), rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_loop_is_ours(done: Path, case: str) -> None:
    method, accumulate, clip = case.split(":")
    assert_same(ranks.result(done, f"straight:{case}"), by_hand(method, int(accumulate), float(clip)))


@pytest.mark.parametrize("method", ["muon", "adan"])
def test_scaler_skips_an_infinite_step(done: Path, method: str) -> None:
    assert_same(ranks.result(done, f"infinite:{method}"), by_hand(method, 1, 0, POISON))
