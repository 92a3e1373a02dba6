"""Structured matrices: what is done with entries alone is what dense matrices give."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polyak.memory.structure import Structure
from polyak.memory.structured import STRUCTURES, Blocks, Hierarchical

CASES = {**STRUCTURES, "blocks of 2": Blocks(2), "hierarchical 2": Hierarchical(2)}
SIZES = st.integers(1, 9)


def draw(structure: Structure, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two members, and rows."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, structure.size(n), generator=generator, dtype=torch.float64)
    return a, b, torch.randn(4, n, generator=generator, dtype=torch.float64)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("structure", CASES.values(), ids=CASES)
@given(n=SIZES, seed=st.integers(0, 99))
def test_entries_do_what_matrices_do(structure: Structure, n: int, seed: int) -> None:
    a, b, rows = draw(structure, n, seed)
    k, m = structure.dense(a, n), structure.dense(b, n)
    close(structure.taken(k), a)
    close(structure.dense(structure.product(a, b, n), n), k @ m)
    close(structure.right(rows, a), rows @ k)
    close(structure.right_transposed(rows, a), rows @ k.T)
    close(structure.gram(rows), structure.project(rows.T @ rows))
    close(structure.square(a, n), structure.project(k.T @ k))
    close(structure.mean_diagonal(a, n), k.trace() / n)
    close(structure.dense(structure.identity(n, a), n), torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize("structure", CASES.values(), ids=CASES)
@given(n=SIZES, seed=st.integers(0, 99))
def test_the_projection_leaves_the_diagonal_and_its_sum(structure: Structure, n: int, seed: int) -> None:
    rows = draw(structure, n, seed)[2]
    close(structure.mean_diagonal(structure.gram(rows), n), rows.square().sum() / n)


def test_projections_by_value() -> None:
    m = torch.tensor([[1.0, 2.0, 3.0], [2.0, 5.0, 7.0], [3.0, 7.0, 9.0]])

    def projected(name: str) -> list[list[float]]:
        structure = CASES[name]
        return structure.dense(structure.project(m), 3).tolist()

    assert projected("dense") == m.tolist()
    assert projected("diagonal") == [[1, 0, 0], [0, 5, 0], [0, 0, 9]]
    assert projected("tril") == [[1, 0, 0], [4, 5, 0], [6, 14, 9]]
    assert projected("triu") == [[1, 4, 6], [0, 5, 14], [0, 0, 9]]
    assert projected("triltoeplitz") == [[5, 0, 0], [9, 5, 0], [6, 9, 5]]  # diagonals: 15/3, 18/2, 6/1
    assert projected("triutoeplitz") == [[5, 9, 6], [0, 5, 9], [0, 0, 5]]
    assert projected("blocks of 2") == [[1, 2, 0], [2, 5, 0], [0, 0, 9]]
    small = Hierarchical(1)
    assert small.dense(small.project(m), 3).tolist() == [[1, 4, 6], [0, 5, 0], [0, 14, 9]]


def test_entries_are_fewer_than_those_of_a_matrix() -> None:
    sizes = {name: structure.size(100) for name, structure in STRUCTURES.items()}
    assert sizes == {
        "dense": 10000, "diagonal": 100, "block30diagonal": 2800, "hierarchical15_15": 15 * 100 + 70 + 15 * 85,
        "tril": 5050, "triu": 5050, "triltoeplitz": 100, "triutoeplitz": 100,
    }  # fmt: skip
