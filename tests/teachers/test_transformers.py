"""transformers' Trainer: averages in its own loop, killed in the middle and resumed."""

from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tests.optim import ranks
from tests.optim.training import assert_same
from tests.optim.transformers_worker import STEPS

CASES = ["after_step:1", "before_forward:2"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a process was killed in each case, and another went on."""
    folder = tmp_path_factory.mktemp("transformers")
    cases = [f"{what}:{case}" for what in ("interrupted", "straight", "resumed") for case in CASES]
    ranks.launch("tests.teachers.transformers_worker", folder, *cases, "elsewhere:after_step:1", world=1)
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
