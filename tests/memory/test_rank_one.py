"""Rank-one updates against what they stand for."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polyak.memory.rank_one import grow_along, inverse_of_average, shrink_along

SEEDS, RATES = st.integers(0, 99), st.floats(0.1, 0.99)


def draw(seed: int) -> tuple[Tensor, Tensor]:
    """A symmetric matrix with eigenvalues in (0, 1], and a vector."""
    generator = torch.Generator().manual_seed(seed)
    a, v = torch.randn(5, 5, generator=generator, dtype=torch.float64), torch.randn(5, generator=generator).double()
    c = a @ a.T + torch.eye(5, dtype=torch.float64)
    return torch.linalg.inv(c), v


@given(seed=SEEDS, decay=RATES)
def test_the_exact_update_is_the_inverse_of_the_average(seed: int, decay: float) -> None:
    inverse, v = draw(seed)
    want = torch.linalg.inv(decay * torch.linalg.inv(inverse) + (1 - decay) * torch.outer(v, v))
    torch.testing.assert_close(inverse_of_average(inverse, v, decay), want, rtol=1e-9, atol=1e-11)


@given(seed=SEEDS, decay=RATES)
def test_the_update_of_the_code_is_an_inverse_below_the_identity(seed: int, decay: float) -> None:
    inverse, v = draw(seed)
    mixed = decay * inverse + (1 - decay) * torch.eye(5, dtype=torch.float64)
    got = shrink_along(inverse, v, decay)
    torch.testing.assert_close(
        got, torch.linalg.inv(torch.linalg.inv(mixed) + torch.outer(v, v)), rtol=1e-9, atol=1e-11
    )
    values = torch.linalg.eigvalsh(got)
    assert values.min() > 0 and values.max() <= 1 + 1e-12


@given(seed=SEEDS, decay=RATES)
def test_the_update_as_printed_grows_along_the_vector(seed: int, decay: float) -> None:
    inverse, v = draw(seed)
    got = grow_along(inverse, v, decay)
    assert torch.linalg.eigvalsh(got).min() > 0
    assert v @ got @ v > decay * (v @ inverse @ v)
