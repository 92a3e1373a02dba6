"""Gradient release: the same training, one gradient at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyak.optim
from polyak.optim import AdamW, Adan, CAdamW, Optimizer, release_gradients
from polyak.optim.engine import views


def reads_others(name: str) -> bool:
    """Whether a method needs all gradients, or the loss, before the first step."""
    method = polyak.optim.get(name)
    options = {h.name: h.default for h in method.hypers}
    chain = method.recipe(options)
    looks = method._advance is not Optimizer._advance
    return looks or bool(chain.inputs) or chain.reads_steps or any(q.kind == "total" for q in chain.questions(options))


ALONE = [n for n in polyak.optim.names() if n != "muon" and not reads_others(n)]


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


@pytest.mark.parametrize("name", ALONE)
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


def two(**options: Any) -> tuple[nn.Parameter, nn.Parameter, Optimizer]:
    """Two weights of one element in groups of their own, with lr 1 and 2; their gradients are to be 1."""
    a, b = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
    groups = [{"params": [("a", a)], "lr": 1.0}, {"params": [("b", b)], "lr": 2.0}]
    return a, b, polyak.optim.SGD(groups, execution="eager", **options)


def test_what_a_step_refuses_is_refused_in_the_pass() -> None:
    a, b, optimizer = two(check_finite=True)
    release_gradients(optimizer)
    with pytest.raises(RuntimeError, match="non-finite gradient in b; it was not stepped"):
        (b * torch.nan).sum().backward()
    b.grad = None
    with (
        views.predicted(optimizer, lambda p, state, group: torch.ones_like(p)),
        pytest.raises(RuntimeError, match="the weights are predicted ones"),
    ):
        a.sum().backward()
    assert [a.item(), b.item()] == [0, 0]
    table = nn.Parameter(torch.zeros(3, 2))
    release_gradients(polyak.optim.SGD([("table", table)], lr=1.0), clip_value=1.0)
    with pytest.raises(RuntimeError, match=r"sparse gradients are not supported \(table\)"):
        nn.functional.embedding(torch.tensor([1]), table, sparse=True).sum().backward()
    assert not table.any()


def test_a_parameter_steps_with_the_options_of_the_group_that_lists_it() -> None:
    a, b, optimizer = two()
    release_gradients(optimizer)
    optimizer.param_groups.reverse()
    (a + b).sum().backward()
    assert [a.item(), b.item()] == [-1, -2]
    optimizer.load_state_dict(optimizer.state_dict())  # makes the groups anew
    optimizer.param_groups[0]["lr"] = 4.0
    (a + b).sum().backward()
    assert [a.item(), b.item()] == [-2, -6]
    del optimizer.param_groups[0]
    with pytest.raises(RuntimeError, match=r"no longer has a released parameter; call remove\(\) and release again"):
        b.sum().backward()
    assert b.item() == -6


def test_another_optimizer_must_be_released_anew() -> None:
    a, b, optimizer = two()
    released = release_gradients(optimizer)
    lion = polyak.optim.switch(optimizer, "lion", weight_decay=0.0)
    with pytest.raises(RuntimeError, match=r"'sgd' was released, the method is 'lion' now; call remove\(\)"):
        (3 * a).sum().backward()
    assert a.item() == 0 and not optimizer.state
    released.remove()
    release_gradients(lion)
    (3 * a + 3 * b).sum().backward()
    lion.step()
    assert [a.item(), b.item()] == [-1, -2]
    again = polyak.optim.switch(lion, "lion")
    with pytest.raises(RuntimeError, match="gradients were released to another optimizer"):
        again.step()


def test_blocks_of_accumulation_nest_and_a_second_release_is_refused():
    net = network()
    optimizer = AdamW(net.parameters(), lr=0.1)
    released = release_gradients(optimizer, net)
    before = [p.detach().clone() for p in net.parameters()]
    x, y = batch(0)
    with released.accumulate():
        with released.accumulate():
            nn.functional.mse_loss(net(x), y).backward()
        nn.functional.mse_loss(net(x), y).backward()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    with pytest.raises(ValueError, match="released already"):
        release_gradients(optimizer, net)
    released.remove()
    release_gradients(optimizer, net)
