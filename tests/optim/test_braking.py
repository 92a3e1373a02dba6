"""Adaptive braking: how much of a gradient comes in follows from its angle to the velocity."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyak.optim import SGD, AdaptiveBraking, Optimizer, chain, rules
from tests.optim.moves import moves, random

MODES = ["eager", "batched", pytest.param("compiled", marks=pytest.mark.slow)]
SHAPES = [(200, 190), (6, 4), (5,), (1,), (4, 2, 3, 3)]


def cosines(granularity: str, grads: list[Tensor], velocities: list[Tensor]) -> list[Tensor]:
    """One by one, broadcastable against the tensors."""

    def of(g: Tensor, v: Tensor) -> Tensor:
        return (g * v).sum() / (g.norm() * v.norm()).clamp(min=1e-8)

    if granularity == "global":
        whole = of(*(torch.cat([t.flatten() for t in ts]) for ts in (grads, velocities)))
        return [whole for _ in grads]
    if granularity == "tensor":
        return [of(g, v) for g, v in zip(grads, velocities, strict=True)]
    return [of(g, v) if g.ndim < 2 else _by_row(g, v, of) for g, v in zip(grads, velocities, strict=True)]


def _by_row(g: Tensor, v: Tensor, of: Any) -> Tensor:
    return torch.stack([of(a, b) for a, b in zip(g, v, strict=True)]).view(-1, *[1] * (g.ndim - 1))


@pytest.mark.parametrize("execution", MODES)
@pytest.mark.parametrize("granularity", ["tensor", "filter", "global"])
def test_it_is_its_equation(granularity: Any, execution: Any) -> None:
    weights = random(1, *SHAPES)
    params = [nn.Parameter(w.clone()) for w in weights]
    optimizer = AdaptiveBraking(
        params, lr=0.1, rho=2.0, weight_decay=0.1, granularity=granularity, clamp=True, execution=execution
    )
    velocities = [torch.zeros_like(w) for w in weights]
    for t in range(4):
        drawn = random(10 + t, *SHAPES)
        for p, g in zip(params, drawn, strict=True):
            p.grad = g.clone()
        optimizer.step()
        grads = [g + 0.1 * w for g, w in zip(drawn, weights, strict=True)]
        alphas = [(1 - 2.0 * a).clamp(min=0.0) for a in cosines(granularity, grads, velocities)]
        velocities = [0.9 * v + a * g for v, a, g in zip(velocities, alphas, grads, strict=True)]
        weights = [w - 0.1 * v for w, v in zip(weights, velocities, strict=True)]
        for p, w in zip(params, weights, strict=True):
            torch.testing.assert_close(p.detach(), w, rtol=1e-10, atol=1e-12)


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.booleans())
def test_without_its_coefficient_it_is_sgd(seed: int, nesterov: bool) -> None:
    start, *gradients = random(seed, *[(3, 5)] * 5)
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    braked = moves(AdaptiveBraking([p], rho=0.0, nesterov=nesterov, weight_decay=0.1), p, gradients)
    plain = moves(SGD([q], lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.1), q, gradients)
    for u, v in zip(braked, plain, strict=True):
        torch.testing.assert_close(u, v, rtol=1e-12, atol=1e-14)


def test_along_the_velocity_less_comes_in_and_against_it_more() -> None:
    g = random(0, (3, 4))[0]
    for sign, expected in ((1.0, 0.0), (-1.0, 2.0)):
        p = nn.Parameter(torch.zeros_like(g))
        optimizer = AdaptiveBraking([p], rho=1.0)
        moves(optimizer, p, [g])
        p.grad = sign * g
        assert optimizer.diagnostics()["parameter 0 of group 0"]["alpha"] == pytest.approx(expected, abs=1e-12)


def test_decay_behind_the_scaling() -> None:
    start, g = random(2, (3, 4), (3, 4))
    p = nn.Parameter(start.clone())
    optimizer = AdaptiveBraking([p], lr=1.0, momentum=0.5, weight_decay=0.1, decay_after=True)
    (first,) = moves(optimizer, p, [g])  # no velocity yet: all of it comes in
    torch.testing.assert_close(first, g + 0.1 * start)
    cosine = float((g * first).sum() / (g.norm() * first.norm()))
    second_start = p.detach().clone()
    (second,) = moves(optimizer, p, [g])
    torch.testing.assert_close(second, 0.5 * first + (1 - cosine) * g + 0.1 * second_start)


@pytest.mark.parametrize("execution", MODES)
def test_any_velocity_brakes(execution: Any) -> None:
    """Adam's average: what comes in a second time is nothing, so that it decays."""
    g = random(4, (6, 4))[0]
    p = nn.Parameter(torch.zeros_like(g))
    whole = chain(rules.braked(rules.adam(), "exp_avg"), rules.descend())
    optimizer = Optimizer([p], whole, lr=0.1, rho=1.0, execution=execution)
    moves(optimizer, p, [g, g])
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], 0.9 * 0.1 * g)


def test_a_velocity_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"braked: adam has no memory 'momentum_buffer', only \['exp_avg', "):
        rules.braked(rules.adam())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rho": -1.0}, r"AdaptiveBraking: rho must be in \[0, inf\), got -1.0"),
        ({"momentum": 1.0}, "momentum .*got 1.0"),
        ({"eps": 0.0}, r"eps must be in \(0, inf\), got 0.0"),
        ({"granularity": "layer"}, "granularity must be one of"),
    ],
)
def test_it_refuses(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        AdaptiveBraking([nn.Parameter(torch.zeros(2))], **options)
