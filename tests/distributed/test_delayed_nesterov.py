"""Delayed Nesterov as an optimizer: its limits, its periods, and where Nesterov at every arrival diverges."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from polyak.optim import SGD, DelayedNesterov


def arrivals(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(count)]


def run(optimizer: torch.optim.Optimizer, p: Parameter, gradients: list[Tensor]) -> list[Tensor]:
    went = []
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
        went.append(p.detach().clone())
    return went


def start() -> Parameter:
    return Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2))


def transcribed(p: np.ndarray, gradients: list[np.ndarray], lr: float, b: float, c: float, n: int) -> list[np.ndarray]:
    """Algorithm 3 of arXiv:2401.09135, in the paper's order."""
    m, d, went = np.zeros_like(p), np.zeros_like(p), []
    for t, g in enumerate(gradients):
        d = d + g
        if (t + 1) % n == 0:
            m = b * m + d / n
            p = p - lr * ((1 - c * n + c) * b * m + g / n)
            d = np.zeros_like(p)
        else:
            p = p - lr * (c * b * m + g / n)
        went.append(p)
    return went


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 7), share=st.floats(0, 1), b=st.floats(0, 0.99), count=st.integers(1, 20))
def test_it_is_the_algorithm(n: int, share: float, b: float, count: int) -> None:
    p, gradients = start(), arrivals(count)
    c = share / n
    optimizer = DelayedNesterov([p], lr=0.3, momentum=b, momentum_activation=c, buffer_size=n, execution="eager")
    want = transcribed(p.detach().numpy().copy(), [g.numpy() for g in gradients], 0.3, b, c, n)
    for got, expected in zip(run(optimizer, p, gradients), want, strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-13)


def test_one_worker_is_torch_nesterov() -> None:
    p, q, gradients = start(), start(), arrivals(12)
    ours = run(DelayedNesterov([p], lr=0.3, momentum=0.9, buffer_size=1), p, gradients)
    theirs = run(torch.optim.SGD([q], lr=0.3, momentum=0.9, nesterov=True), q, gradients)
    assert all(torch.allclose(a, b, rtol=1e-13, atol=0) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("c", [0.0, 0.1, 0.25])
def test_arrivals_from_one_point_are_one_nesterov_step_with_their_mean(c: float) -> None:
    p, q, gradients = start(), start(), arrivals(4)
    run(DelayedNesterov([p], lr=0.3, momentum=0.9, momentum_activation=c, buffer_size=4), p, gradients)
    run(SGD([q], lr=0.3, momentum=0.9, nesterov=True), q, [torch.stack(gradients).mean(0)])
    if c == 0.0:
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-15)
    else:  # the share of the first arrivals falls on the momentum before, which is zero
        torch.testing.assert_close(p - q, 0.3 * 0.9 * 3 * c * torch.stack(gradients).mean(0), rtol=1e-10, atol=1e-13)


def quadratic(make: Any, workers: int, total: int = 4000) -> float:
    """``x^2 / 2`` by workers in turn, each with the gradient where it last was: the last ``|x|``."""
    x = Parameter(torch.ones((), dtype=torch.float64))
    optimizer = make([x])
    known = [x.detach().clone() for _ in range(workers)]
    for t in range(total):
        x.grad = known[t % workers].clone()
        optimizer.step()
        known[t % workers] = x.detach().clone()
        if abs(x.item()) > 1e6:
            return float("inf")
    return abs(x.item())


def delayed(lr: float, workers: int) -> float:
    return quadratic(lambda p: DelayedNesterov(p, lr=lr, buffer_size=workers, execution="eager"), workers)


def naive(lr: float, workers: int, weight: float) -> float:
    return quadratic(lambda p: SGD(p, lr=lr * weight, momentum=0.9, nesterov=True, execution="eager"), workers)


@pytest.mark.parametrize("workers", [4, 8])
@pytest.mark.parametrize("lr", [0.2, 0.4])
def test_it_converges_where_momentum_at_every_arrival_diverges(lr: float, workers: int) -> None:
    assert delayed(lr, workers) < 1e-6
    assert naive(lr, workers, 1 / workers) == float("inf")


def test_both_converge_at_a_small_rate_and_diverge_at_a_large_one() -> None:
    assert delayed(0.1, 4) < 1e-12
    assert naive(0.1, 4, 1 / 4) < 1e-12
    assert delayed(0.8, 4) == naive(0.8, 4, 1 / 4) == naive(0.05, 4, 1.0) == float("inf")


@pytest.mark.parametrize("c", [0.0, 0.2])
def test_an_open_period_is_resumed_bit_for_bit(c: float, tmp_path: Path) -> None:
    p, gradients = start(), arrivals(11)
    options: dict[str, Any] = {"momentum_activation": c, "buffer_size": 4}
    optimizer = DelayedNesterov([p], **options)
    run(optimizer, p, gradients[:6])
    torch.save({"p": p.detach(), "optimizer": optimizer.state_dict()}, tmp_path / "saved.pt")
    want = run(optimizer, p, gradients[6:])
    saved = torch.load(tmp_path / "saved.pt")
    q = Parameter(saved["p"])
    resumed = DelayedNesterov([q], **options)
    resumed.load_state_dict(saved["optimizer"])
    assert all(torch.equal(a, b) for a, b in zip(run(resumed, q, gradients[6:]), want, strict=True))


def test_too_large_a_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 1 / buffer_size = 0.25, got 0.26; the momentum weight of a period"):
        DelayedNesterov([start()], momentum_activation=0.26, buffer_size=4)
    optimizer = DelayedNesterov([start()], momentum_activation=0.25, buffer_size=4)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="momentum weight of a period"):
        optimizer.add_param_group({"params": [start()], "buffer_size": 5})
    assert str(optimizer.state_dict()) == str(before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"buffer_size": 0}, "buffer_size"),
        ({"buffer_size": 2.5}, "buffer_size must be an integer"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum_activation": -0.1}, "momentum_activation"),
        ({"lr": -1.0}, "lr"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        DelayedNesterov([start()], **options)
