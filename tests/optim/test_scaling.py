"""Random scaling: one number a step for all tensors, which follows from a seed and the optimizer's steps."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak.optim import Optimizer, RandomScaling, chain, release_gradients, rules
from polyak.optim.vocabulary.scaling import scale_at
from tests.optim.moves import random

UNSCALED: dict[str, Any] = {"distribution": "none", "max_scale": None, "seed": 0, "scales": None}
MODES = ["eager", "batched", pytest.param("compiled", marks=pytest.mark.slow)]


def fresh() -> list[nn.Parameter]:
    return [nn.Parameter(w) for w in random(5, (200, 190), (6, 4), (5,), (1,))]


def step(optimizer: Optimizer, params: list[nn.Parameter], t: int, missing: int = -1) -> None:
    for i, (p, g) in enumerate(zip(params, random(40 + t, *[p.shape for p in params]), strict=True)):
        p.grad = None if i == missing else g
    optimizer.step()


@pytest.mark.parametrize("execution", MODES)
def test_any_chain_is_scaled_by_one_number_a_step(execution: Any) -> None:
    """Lion with its decay; also where a tensor had no gradient in a step before."""
    params, plain = fresh(), fresh()
    links = (rules.decay("decoupled"), rules.lion(), rules.descend())
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "execution": execution}
    scaled = Optimizer(params, chain(*links, rules.random_scaling()), **options, seed=7)
    base = Optimizer(plain, chain(*links), **options)
    for t in range(5):
        missing = 1 if t == 2 else -1
        before = [p.detach().clone() for p in params]
        for p, q in zip(params, plain, strict=True):
            q.data.copy_(p.data)
        step(scaled, params, t, missing)
        step(base, plain, t, missing)
        scale = scale_at(UNSCALED | {"distribution": "exponential", "seed": 7}, t)
        for p, q, b in zip(params, plain, before, strict=True):
            torch.testing.assert_close(p.detach() - b, scale * (q.detach() - b), rtol=1e-9, atol=1e-12)


def test_scales_have_mean_one_and_their_distribution() -> None:
    drawn = [scale_at(UNSCALED | {"distribution": "exponential"}, t) for t in range(4000)]
    assert sum(drawn) / 4000 == pytest.approx(1.0, abs=0.06)
    assert sum(s > 1 for s in drawn) / 4000 == pytest.approx(math.exp(-1), abs=0.03)
    even = [scale_at(UNSCALED | {"distribution": "uniform"}, t) for t in range(4000)]
    assert sum(even) / 4000 == pytest.approx(1.0, abs=0.04) and min(even) >= 0 and max(even) < 2
    assert {scale_at(UNSCALED, t) for t in range(9)} == {1.0}
    assert max(scale_at(UNSCALED | {"distribution": "exponential", "max_scale": 1.5}, t) for t in range(99)) == 1.5


def run(optimizer: Optimizer, params: list[nn.Parameter], first: int, last: int) -> list[Tensor]:
    for t in range(first, last):
        step(optimizer, params, t, missing=t % 5)
    return [p.detach().clone() for p in params]


@pytest.mark.parametrize("base", ["sgdm", "adamw", "ogd"])
def test_it_resumes_bit_for_bit(base: Any) -> None:
    params = fresh()
    optimizer = RandomScaling(params, base=base, lr=0.01, seed=3)
    run(optimizer, params, 0, 4)
    others = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = RandomScaling(others, base=base, lr=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for a, b in zip(run(optimizer, params, 4, 9), run(resumed, others, 4, 9), strict=True):
        assert torch.equal(a, b)


def test_a_group_that_is_added_later_has_the_scale_of_the_others() -> None:
    first, later = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    optimizer = RandomScaling([first], momentum=0.0, lr=1.0, scales=[0.5, 2.0, 3.0])
    for t in range(3):
        if t == 1:
            optimizer.add_param_group({"params": [later]})
        first.grad, later.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
    assert float(first.detach()[0]) == -5.5 and float(later.detach()[0]) == -5.0


def test_scales_that_are_used_up_are_told_before_anything_moves() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = RandomScaling([p], scales=[1.0])
    p.grad = torch.ones(3)
    optimizer.step()
    before = p.detach().clone()
    with pytest.raises(ValueError, match="scales has 1 numbers, and this is step 2"):
        optimizer.step()
    assert torch.equal(p.detach(), before) and optimizer.param_groups[0]["steps"] == 1


def test_released_gradients_have_no_common_step() -> None:
    with pytest.raises(ValueError, match="reads the optimizer's number of steps"):
        release_gradients(RandomScaling([nn.Parameter(torch.zeros(3))]))


@pytest.mark.parametrize("exponential", [True, False])
def test_why_the_scale_is_exponential(exponential: bool) -> None:
    """E[F(x + sD) - F(x)] = E<F'(x + sD), D> for F = |x| with s ~ Exp(1), and not with s = 1."""
    x, d = -0.5, 1.2
    name = "exponential" if exponential else "none"
    scales = torch.tensor([scale_at(UNSCALED | {"distribution": name, "seed": 1}, t) for t in range(20000)])
    there = x + scales * d
    difference = (there.abs() - abs(x)) - there.sign() * d
    error = 3 * max(float(difference.std()), 1e-9) / math.sqrt(len(difference))
    assert (abs(float(difference.mean())) < error) is exponential


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"momentum": 1.0}, "RandomScaling: momentum must be below 1 where base='sgdm', got 1.0"),
        ({"momentum": 1.1}, r"momentum must be in \[0, 1\], got 1.1"),
        ({"mu": -1.0}, "mu .*got -1.0"),
        ({"distribution": "normal"}, "distribution must be one of"),
        ({"scales": "many"}, "scales must be None or a list of numbers, got 'many'"),
        ({"max_scale": 0.0}, "max_scale .*got 0.0"),
        ({"base": "lion"}, "base must be one of"),
    ],
)
def test_it_refuses(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RandomScaling([nn.Parameter(torch.zeros(2))], **options)
