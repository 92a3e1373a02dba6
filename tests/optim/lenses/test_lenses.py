"""The laws of lenses, and that the way back of a composite is the chain rule."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyak.optim import lenses
from polyak.optim.lenses import Lens, ParaLens

SEEDS = st.integers(0, 2**31)


def random(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def same(a: Any, b: Any) -> None:
    """Trees of one structure, equal bit for bit."""
    lenses.tree_map(lambda x, y: [torch.testing.assert_close(x, y, rtol=0, atol=0), x][1], a, b)


def alike(f: Lens, g: Lens, a: Any, change: Any) -> None:
    same(f.get(a), g.get(a))
    same(f.put(a, change), g.put(a, change))


F = lenses.differentiable(torch.sin)
G = lenses.differentiable(lambda x: x * x)
H = lenses.differentiable(torch.exp)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_composition_is_associative_and_has_identities(seed: int) -> None:
    a, change = random(seed, (3,), (3,))
    alike((F >> G) >> H, F >> (G >> H), a, change)
    alike(lenses.identity >> F, F, a, change)
    alike(F >> lenses.identity, F, a, change)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_pairs(seed: int) -> None:
    a, b, c, da, db = random(seed, (3,), (2,), (4,), (3,), (2,))
    alike((F >> G) @ (G >> H), (F @ G) >> (G @ H), (a, b), (da, db))
    alike(lenses.swap >> lenses.swap, lenses.identity @ lenses.identity, (a, b), (da, db))
    alike(lenses.swap >> (F @ G) >> lenses.swap, G @ F, (a, b), (da, db))
    triple = lenses.identity @ (lenses.identity @ lenses.identity)
    alike(lenses.associate_left >> lenses.associate_right, triple, (a, (b, c)), (a, (b, c)))
    same(lenses.first.put((a, b), da), (da, torch.zeros(2, dtype=torch.float64)))
    same(lenses.second.put((None, b), db), (None, db))
    same(lenses.first.get((a, b)), a)
    same(lenses.second.get((a, b)), b)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_the_way_back_is_the_chain_rule(seed: int) -> None:
    b1, m1, b2, m2, x, change = random(seed, (4,), (4, 3), (2,), (2, 4), (3,), (2,))
    model = lenses.dense() >> lenses.dense(torch.tanh)
    p = ((None, (b2, m2)), (None, (b1, m1)))
    wanted = [v.clone().requires_grad_() for v in (b2, m2, b1, m1, x)]
    value = torch.tanh(wanted[1] @ torch.sigmoid(wanted[3] @ wanted[4] + wanted[2]) + wanted[0])
    torch.testing.assert_close(model.lens.get((p, x)), value.detach(), rtol=1e-14, atol=0)
    gradients = torch.autograd.grad(value, wanted, change)
    ((none2, (gb2, gm2)), (none1, (gb1, gm1))), gx = model.lens.put((p, x), change)
    assert none1 is none2 is None
    for got, want in zip((gb2, gm2, gb1, gm1, gx), gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_reparametrising_twice_is_once_by_the_composite(seed: int) -> None:
    p, x, change = random(seed, (4,), (4,), (4,))
    model = lenses.bias()
    twice, once = model.reparametrise(F).reparametrise(G), model.reparametrise(G >> F)
    alike(twice.lens, once.lens, (p, x), change)
    assert isinstance(twice, ParaLens)


def test_a_module_is_a_lens() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    model, p = lenses.from_module(module)
    x, change = random(1, (3,), (2,))
    same(model.lens.get((p, x)), module(x).detach())
    module(x).backward(change)
    got, _ = model.lens.put((p, x), change)
    for one, param in zip(got, module.parameters(), strict=True):
        torch.testing.assert_close(one, param.grad, rtol=1e-13, atol=1e-15)


def test_what_does_not_fit_is_refused_with_both_shapes() -> None:
    a = torch.zeros(3)
    with pytest.raises(ValueError, match=r"shape \(3,\), a tensor of shape \(2,\)"):
        F.put(a, torch.zeros(2))
    with pytest.raises(ValueError, match=r"different structure: a tuple of 2, a tensor of shape \(3,\)"):
        lenses.tree_map(torch.add, (a, a), a)
    with pytest.raises(ValueError, match="a tuple of 2, a tuple of 3"):
        lenses.tree_map(torch.add, (a, a), (a, a, a))
    with pytest.raises(ValueError, match="the unit, a tensor"):
        lenses.tree_map(torch.add, None, a)
    with pytest.raises(TypeError, match="tensors, tuples and None, got 3"):
        lenses.tree_map(torch.add, 3, a)
    with pytest.raises(ValueError, match=r"shape \(3,\), a tensor of shape \(1,\)"):
        lenses.bias().lens.get((a, torch.zeros(1)))  # which torch would broadcast
    with pytest.raises(RuntimeError, match=r"size mismatch|mat"):
        (lenses.linear() >> lenses.linear()).lens.get(((torch.zeros(2, 5), torch.zeros(4, 3)), a))
