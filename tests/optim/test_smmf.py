"""SMMF: averages kept as factors, and what they take."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyak.memory.storage import factorize, reconstruct, square_shape
from polyak.optim import SMMF, AdamW
from tests.optim.moves import moves, random


def by_hand(start: Tensor, gradients: list[Tensor], lr: float, beta: float, rate: float, growth: float) -> Tensor:
    """The paper's algorithm, line by line."""
    w, shape = start.clone(), square_shape(start.numel())
    m, v = factorize(torch.zeros(shape, dtype=w.dtype), 1), factorize(torch.zeros(shape, dtype=w.dtype))
    for t, g in enumerate(gradients, start=1):
        b, a = beta * growth ** (t - 1), t**rate
        mean = b * reconstruct(*m) + (1 - b) * g.reshape(shape)
        square = (1 - a) * reconstruct(v.row, v.col) + a * g.reshape(shape) ** 2
        m, v = factorize(mean, 1), factorize(square)
        w -= lr * (mean / (square.sqrt() + 1e-8)).reshape(w.shape)
    return w


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from([(16, 16), (4, 3, 3, 3), (36,), (2, 100)]), st.sampled_from([-0.5, -0.8]))
def test_it_is_the_papers_algorithm(seed: int, shape: tuple[int, ...], rate: float) -> None:
    start, *gradients = random(seed, *[shape] * 6)
    p = nn.Parameter(start.clone())
    moves(SMMF([p], lr=0.01, decay_rate=rate, growth_rate=0.9), p, gradients)
    torch.testing.assert_close(p.detach(), by_hand(start, gradients, 0.01, 0.9, rate, 0.9), rtol=1e-11, atol=1e-13)


def test_what_it_takes_beside_adam() -> None:
    """Four vectors of 1,024 and a bit a weight, against two numbers a weight."""
    p = nn.Parameter(torch.zeros(1024, 1024))
    p.grad = torch.ones_like(p)
    optimizer, adam = SMMF([p]), AdamW([p])
    optimizer.step()
    adam.step()
    counters = 4  # bytes of the number of steps
    assert optimizer.state_bytes() - counters == 4 * 1024 * 4 + 1024 * 1024 // 8
    assert (optimizer.state_bytes() - counters) / (adam.state_bytes() - counters) == pytest.approx(0.0176, abs=1e-4)
    assert SMMF.state_bytes_per_parameter() == pytest.approx(0.141, abs=1e-3)
    assert SMMF.state_bytes_per_parameter(beta=None) == pytest.approx(0.008, abs=1e-3)
    assert SMMF.state_bytes_per_parameter(state_storage="float32") == 8.0


@pytest.mark.parametrize(("reshape", "shape", "factored"), [
    (True, (4096,), True), (False, (4096,), False), (False, (1, 4096, 1), False), (False, (64, 64), True),
    (True, (4099,), False), (True, (1,), False),
])  # fmt: skip
def test_what_is_factored(reshape: bool, shape: tuple[int, ...], factored: bool) -> None:
    p = nn.Parameter(torch.zeros(shape))
    p.grad = torch.ones_like(p)
    optimizer = SMMF([p], vector_reshape=reshape)
    optimizer.step()
    keys = set(optimizer.state[p])
    assert keys == ({"step", "exp_avg_row", "exp_avg_col", "exp_avg_sign", "exp_avg_sq_row", "exp_avg_sq_col"}
                    if factored else {"step", "exp_avg", "exp_avg_sq"})  # fmt: skip


def test_factors_have_the_dtype_of_the_memory() -> None:
    for dtype, kept in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        p = nn.Parameter(torch.zeros(8, 8, dtype=dtype))
        p.grad = torch.ones_like(p)
        optimizer = SMMF([p])
        optimizer.step()
        assert optimizer.state[p]["exp_avg_row"].dtype == kept


def test_decay_in_both_modes() -> None:
    start, g = random(3, (8, 8), (8, 8))
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    (decoupled,) = moves(SMMF([p], lr=0.1, eps=0.0, weight_decay=0.5), p, [g])
    (coupled,) = moves(SMMF([q], lr=0.1, eps=0.0, weight_decay=0.5, weight_decay_mode="adam"), q, [g])
    plain = 0.1 * 0.1 * g.sign()
    torch.testing.assert_close(decoupled, 0.05 * start + plain, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(coupled, 0.1 * 0.1 * (g + 0.5 * start).sign(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"beta": 1.5}, r"SMMF: beta must be in \[0, 1\], got 1.5"),
        ({"decay_rate": 0.5}, r"decay_rate must be in \[-1, 0\], got 0.5"),
        ({"decay_rate": -1.5}, "decay_rate .*got -1.5"),
        ({"growth_rate": 1.1}, "growth_rate .*got 1.1"),
        ({"weight_decay_mode": "l2"}, "weight_decay_mode must be one of"),
    ],
)
def test_it_refuses(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SMMF([nn.Parameter(torch.zeros(2))], **options)
