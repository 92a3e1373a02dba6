"""Compiled steps go straight to the graph, and keep what torch.compile's wrappers keep."""

import pytest
import torch

import polyak.optim as optim
from polyak.optim.engine import kernels

SHAPES = [(200, 200), (150, 131), (7, 5), (33,), (300, 70), (70, 300)]


def stepped(name: str, execution: str, steps: int = 3) -> list[torch.nn.Parameter]:
    params = [
        torch.nn.Parameter(torch.randn(s, generator=torch.Generator().manual_seed(i))) for i, s in enumerate(SHAPES)
    ]
    optimizer = optim.create(name, params, execution=execution)
    for t in range(steps):
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * t + i))
        optimizer.step()
    return params


@pytest.mark.parametrize("name", ["adamw", "cadamw"])
def test_the_second_step_is_direct_and_equal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_kernels", {})
    compiled, eager = stepped(name, "compiled"), stepped(name, "eager")
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    made = list(kernels._kernels.values())
    assert made
    assert all((kernel.direct is None) == (kernel._through is None) for kernel in made)
    assert any(kernel.direct is not None for kernel in made)


@pytest.mark.parametrize("execution", ["eager", "batched", "compiled"])
def test_a_step_counts_as_a_change_for_autograd(execution: str) -> None:
    p = torch.nn.Parameter(torch.randn(200, 200))
    optimizer = optim.AdamW([p], execution=execution)
    for _ in range(3):  # the first call, one through the kernel, one prepared
        loss = (p * p).sum()
        loss.backward(retain_graph=True)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        optimizer.zero_grad()
