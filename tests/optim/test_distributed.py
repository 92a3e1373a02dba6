"""Tensors on two ranks: plain ones never wait for each other, sharded ones train as if they were whole."""

from pathlib import Path

import pytest
import torch

from tests import ranks
from tests.optim.tensor_worker import local_run
from tests.optim.training import assert_same

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")

GAPS = ["adamw", "cadamw", "adan", "muon", "adamp", "tam"]
COLUMNS = ["cadamw", "muon", "adan", "tam", "lion", "cadan"]
ROWS = ["adamp", "cadamw", "muon", "adan", "tam"]
REPLICATED = ["gsm"]
REFUSED = ["adamp", "sgdp"]
THAWED = ["cadan", "tam", "adan"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensors")
    cases = [("gaps", GAPS), ("columns", COLUMNS), ("rows", ROWS), ("hybrid", ROWS)]
    cases += [("replicated", REPLICATED), ("refusal", REFUSED), ("thawed", THAWED)]
    ranks.launch("optim.tensor_worker", folder, *(f"{case}:{name}" for case, names in cases for name in names))
    return folder


@pytest.mark.parametrize("method", GAPS)
def test_plain_tensors_with_other_gaps_on_each_rank(done: Path, method: str) -> None:
    for rank, got in enumerate(ranks.result(done, f"gaps:{method}")):
        assert_same(got, local_run(method, rank), rtol=1e-15)


@pytest.mark.parametrize("method", COLUMNS)
def test_sharded_along_columns(done: Path, method: str) -> None:
    assert_same(ranks.result(done, f"columns:{method}"), local_run(method, None))


@pytest.mark.parametrize("case", ["rows", "hybrid"])
@pytest.mark.parametrize("method", ROWS)
def test_sharded_along_rows(done: Path, case: str, method: str) -> None:
    assert_same(ranks.result(done, f"{case}:{method}"), local_run(method, None))


@pytest.mark.parametrize("method", REPLICATED)
def test_gradients_that_are_still_to_be_added(done: Path, method: str) -> None:
    assert_same(ranks.result(done, f"replicated:{method}"), local_run(method, None))


@pytest.mark.parametrize("method", REFUSED)
def test_methods_of_rows_refuse_columns(done: Path, method: str) -> None:
    said = ranks.result(done, f"refusal:{method}")
    assert said.startswith("square is sharded along dimension 1"), said
    assert "whole rows" in said
    assert "shard it along dimension 0" in said


@pytest.mark.parametrize("method", THAWED)
def test_first_gradient_after_thawing_comes_on_one_rank_only(done: Path, method: str) -> None:
    got = ranks.result(done, f"thawed:{method}")
    assert all(value.isfinite().all() for value in got.values())
