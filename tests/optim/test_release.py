"""Gradient release: the same training, one gradient at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyak.optim
from polyak.optim import AdamW, Adan, CAdamW, Optimizer, release_gradients


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).double()


def batch(t: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(t)
    x = torch.randn(8, 6, generator=source, dtype=torch.float64)
    return x, x.sum(1, keepdim=True).sin()


def train(make: Callable[[nn.Module], Optimizer], release: bool, steps: int = 6, **options: Any) -> nn.Module:
    net = network()
    optimizer = make(net)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    if release:
        release_gradients(optimizer, net, **options)
    for t in range(steps):
        x, y = batch(t)
        nn.functional.mse_loss(net(x), y).backward()
        if release:
            assert all(p.grad is None for p in net.parameters())
        elif options:
            nn.utils.clip_grad_value_(net.parameters(), options["clip_value"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return net


def same(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [n for n in polyak.optim.names() if n != "muon"])
def test_every_method_trains_as_without(name: str) -> None:
    def make(net: nn.Module) -> Optimizer:
        return polyak.optim.get(name)(net.parameters(), lr=1e-2)

    same(train(make, True), train(make, False))


def test_muon_trains_as_without() -> None:
    def make(net: nn.Module) -> Optimizer:
        return polyak.optim.create("muon", net, ns_dtype=torch.float64)

    same(train(make, True), train(make, False))


def test_gradients_are_clipped_by_value() -> None:
    def make(net: nn.Module) -> Optimizer:
        return CAdamW(net.parameters(), lr=1e-2)

    same(train(make, True, clip_value=0.01), train(make, False, clip_value=0.01))


def test_gradients_add_up_where_told_to() -> None:
    net, twin = network(), network()
    optimizer, other = AdamW(net.parameters()), AdamW(twin.parameters())
    released = release_gradients(optimizer, net)
    x, y = batch(0)
    with released.accumulate():
        nn.functional.mse_loss(net(x[:4]), y[:4]).backward()
    assert all(p.grad is not None for p in net.parameters()) and not optimizer.state
    nn.functional.mse_loss(net(x[4:]), y[4:]).backward()
    for part in (slice(0, 4), slice(4, 8)):
        nn.functional.mse_loss(twin(x[part]), y[part]).backward()
    other.step()
    same(net, twin)


def test_a_checkpoint_goes_on_without_release_and_back() -> None:
    net, twin = network(), network()
    optimizer, other = AdamW(net.parameters(), lr=1e-2), AdamW(twin.parameters(), lr=1e-2)
    released = release_gradients(optimizer, net)
    for t in range(9):
        if t == 3:
            released.remove()
        if t == 6:
            saved = optimizer.state_dict()
            optimizer = AdamW(net.parameters(), lr=1e-2)
            optimizer.load_state_dict(saved)
            release_gradients(optimizer, net)
        for model, own in ((net, optimizer), (twin, other)):
            own.zero_grad()
            x, y = batch(t)
            nn.functional.mse_loss(model(x), y).backward()
            own.step()
    same(net, twin)
    assert {float(s["step"]) for s in optimizer.state.values()} == {9.0}


def test_what_cannot_be_released_is_refused_with_the_reason() -> None:
    net = network()
    with pytest.raises(ValueError, match="clip_norm of group 0 needs all gradients at once"):
        release_gradients(Adan(net.parameters(), max_grad_norm=1.0), net)
    with pytest.raises(ValueError, match="parameter 0 of group 0 is none of the model's"):
        release_gradients(AdamW(network().parameters()), net)
    with pytest.raises(ValueError, match="clip_value must be positive, got 0"):
        release_gradients(AdamW(net.parameters()), net, clip_value=0.0)
    assert all(not p._post_accumulate_grad_hooks for p in net.parameters())
