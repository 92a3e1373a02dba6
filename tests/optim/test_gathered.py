"""Tensors gathered for one compiled kernel, as where launches are dear: every one of them takes its step."""

import pytest
import torch
from torch import nn

import polyak.optim
from polyak.optim.engine import units

SHAPES = ((30, 20), (64,), (8, 4, 3, 3), (131, 7), (5,), (1,), (), (0, 4), (200, 200))


@pytest.fixture(autouse=True)
def _launches_are_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "DEAR", {"cpu", "cuda"})


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]


def train(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: range) -> None:
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        for i, p in enumerate(params):
            # some have none now and then, and so another step number than those they are gathered with
            p.grad = None if t == 3 and i % 3 == 0 else torch.randn(p.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "sgd", pytest.param("lion", marks=pytest.mark.slow)])
def test_all_of_them_step(name: str) -> None:
    params, reference = weights(), weights()
    kind = polyak.optim.get(name)
    optimizer, eager = kind(params, execution="compiled"), kind(reference, execution="eager")
    for steps in (range(3), range(3, 7)):
        train(optimizer, params, steps)
        train(eager, reference, steps)
        for p, q in zip(params, reference, strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-6)
    assert "together in" in optimizer.explain()


def test_a_line_of_direct_calls_leaves_them_in() -> None:
    params, reference = weights(), weights()
    big = [nn.Parameter(torch.full((300, 400), 0.5)) for _ in range(2)]
    optimizer = polyak.optim.AdamW([*params, big[0]], execution="compiled")
    eager = polyak.optim.AdamW([*reference, big[1]], execution="eager")
    train(optimizer, [*params, big[0]], range(4, 8))
    train(eager, [*reference, big[1]], range(4, 8))
    for p, q in zip([*params, big[0]], [*reference, big[1]], strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-6)
