"""MKOR by value, its bases and forms, and MKOR-H's switch."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak.memory.rank_one import grow_along, inverse_of_average, shrink_along
from polyak.optim import LAMB, MKOR, MKORH, SGD, AdamW
from tests.optim.layerwise.nets import make, net, train, weights


def linear(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2, bias=bias).double()


def data(seed: int = 1) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(layer: nn.Linear, optimizer: MKOR, x: Tensor, **loss: float) -> Tensor:
    """One step of the mean over samples of half the square of what comes out; its output gradients of samples."""
    optimizer.zero_grad()
    out = layer(x)
    (out.square().sum(1) / 2).mean().backward()
    optimizer.step(**loss)
    return out.detach()


def test_a_layer_by_hand() -> None:
    layer, x = linear(), data()
    optimizer = MKOR(layer, lr=0.1, momentum=0.0, inv_freq=1, stat_decay=0.8)
    inner, outer = torch.eye(4, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    ones = torch.cat([x, torch.ones(4, 1, dtype=torch.float64)], 1)
    for count in range(3):
        before = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().clone()
        out = step(layer, optimizer, x)
        if count:
            inner, outer = shrink_along(inner, ones.mean(0), 0.8), shrink_along(outer, out.mean(0), 0.8)
        g = out.T @ ones / 4
        v = outer @ g @ inner
        v = v * (g[:, :-1].norm() + g[:, -1].norm()) / (v[:, :-1].norm() + v[:, -1].norm())
        after = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
        torch.testing.assert_close(after, before - 0.1 * v, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("variant", "update"), [("paper", grow_along), ("exact", inverse_of_average)])
def test_the_other_forms_of_the_update(variant: Any, update: Any) -> None:
    layer, x = linear(bias=False), data()
    optimizer = MKOR(layer, lr=0.0, inv_freq=1, variant=variant, reset_threshold=1.05, stabilization_factor=0.25)
    inner = torch.eye(3, dtype=torch.float64)
    for _ in range(4):
        step(layer, optimizer, x)
        if inner.abs().max() > 1.05:
            inner = 0.75 * inner + 0.25 * torch.eye(3, dtype=torch.float64)
        inner = update(inner, x.mean(0), 0.95)
        torch.testing.assert_close(optimizer.state[layer.weight]["input_inverse"], inner, rtol=1e-11, atol=1e-12)


def test_a_large_factor_begins_anew_with_the_other() -> None:
    layer, x = linear(bias=False), data()
    optimizer = MKOR(layer, lr=0.0, inv_freq=1)
    step(layer, optimizer, x)
    state = optimizer.state[layer.weight]
    state["input_inverse"] = 9 * torch.eye(3, dtype=torch.float64)  # which its own update never makes
    step(layer, optimizer, x)
    assert torch.equal(state["output_inverse"], torch.eye(2, dtype=torch.float64))  # in the same refresh
    assert (state["input_reset"], state["output_reset"]) == (1, 0)
    step(layer, optimizer, x)
    assert torch.equal(state["input_inverse"], torch.eye(3, dtype=torch.float64))
    assert state["input_reset"] == 0


def test_inputs_and_gradients_are_clamped() -> None:
    layer, x = linear(bias=False), data()
    optimizer = MKOR(layer, lr=0.0, inv_freq=1, clipping_value=0.5)
    for _ in range(2):
        out = step(layer, optimizer, x)
    want = shrink_along(torch.eye(2, dtype=torch.float64), out.clamp(-0.5, 0.5).mean(0), 0.95)
    torch.testing.assert_close(optimizer.state[layer.weight]["output_inverse"], want, rtol=1e-12, atol=1e-13)
    want = shrink_along(torch.eye(3, dtype=torch.float64), x.clamp(-0.5, 0.5).mean(0), 0.95)
    torch.testing.assert_close(optimizer.state[layer.weight]["input_inverse"], want, rtol=1e-12, atol=1e-13)


def test_the_warm_up_refreshes_every_step() -> None:
    optimizer = MKOR(linear(), inv_freq=5, warmup_steps=3)
    assert [count for count in range(11) if optimizer.is_due(optimizer.param_groups[0], count)] == [0, 1, 2, 5, 10]


def test_a_gradient_of_zero_is_left() -> None:
    layer = linear()
    optimizer = MKOR(layer, lr=0.1)
    before = layer.weight.detach().clone()
    layer(data()).mul(0).sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("base", ["sgd", "adamw", "lamb"])
def test_with_factors_that_are_identities_it_is_its_base(base: Any) -> None:
    """At the first refresh nothing is learnt, and no other comes."""
    model, twin = net(), net()
    bases = {
        "sgd": SGD(twin.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1),
        "adamw": AdamW(twin.parameters(), lr=0.01, weight_decay=0.1),
        "lamb": LAMB(twin.parameters(), lr=0.01, weight_decay=0.1, eps=1e-8),
    }
    train(model, MKOR(model, lr=0.01, base=base, weight_decay=0.1, inv_freq=99), 0, 5)  # type: ignore[arg-type]
    train(twin, bases[base], 0, 5)  # type: ignore[arg-type]
    for name, p in weights(twin).items():
        torch.testing.assert_close(weights(model)[name], p, rtol=1e-10, atol=1e-12)


# MKOR-H


def falling(optimizer: MKORH, layer: nn.Linear, steps: int, constant: float) -> int:
    """Steps with a loss that decays exponentially, until the switch; their number, or -1."""
    for t in range(steps):
        step(layer, optimizer, data(), loss=math.exp(-t / constant))
        if not optimizer.is_on:
            return t
    return -1


@pytest.mark.parametrize(("constant", "beta"), [(30.0, 0.01), (50.0, 0.001)])
def test_the_knee_of_an_exponential_is_where_its_formula_says(constant: float, beta: float) -> None:
    layer = linear()
    found = falling(MKORH(layer, inv_freq=1, knee_beta=beta, lr=1e-3), layer, 300, constant)
    knee = constant * math.log(1 + 1 / (beta * constant))
    assert knee < found < knee + 14  # and the lag of the average


def test_behind_the_switch_it_is_its_base_without_hooks_or_factors() -> None:
    layer = linear()
    optimizer = MKORH(layer, inv_freq=1, lr=0.1, momentum=0.0)
    step(layer, optimizer, data(), loss=1.0)
    optimizer.switch_to_first_order()
    assert not layer._forward_hooks and not optimizer.state[layer.weight]
    assert optimizer.param_groups[0]["switched_at"] == 1
    before = layer.weight.detach().clone()
    step(layer, optimizer, data())  # no loss is needed any more
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.detach(), before - 0.1 * layer.weight.grad, rtol=1e-12, atol=1e-14)


def test_the_ratio_switches_when_the_decrease_is_slow_for_long() -> None:
    layer = linear()
    optimizer = MKORH(layer, inv_freq=2, switch="ratio", lr=1e-3)
    found = falling(optimizer, layer, 400, 20.0)
    assert found == -1  # averages of an exponential stay in proportion
    flat = MKORH(layer, inv_freq=2, switch="ratio", lr=1e-3)
    for t in range(600):
        step(layer, flat, data(), loss=1 + math.exp(-t / 10))
        if not flat.is_on:
            break
    assert 50 < t < 599


@pytest.mark.parametrize("when", ["before", "behind"])
def test_a_checkpoint_knows_the_side_of_the_switch(when: str) -> None:
    layer = linear()
    optimizer = MKORH(layer, inv_freq=1, lr=0.1)
    for loss in (1.0, 0.5):
        step(layer, optimizer, data(), loss=loss)
    if when == "behind":
        optimizer.switch_to_first_order()
    saved = copy.deepcopy(optimizer.state_dict())
    for far in (False, True):
        other = linear()
        other.load_state_dict(layer.state_dict())
        twin = MKORH(other, inv_freq=1, lr=0.1)
        if far:
            step(other, twin, data(), loss=1.0)
            twin.switch_to_first_order()
            other.load_state_dict(layer.state_dict())
        twin.load_state_dict(saved)
        assert twin.is_on == (when == "before") == bool(other._forward_hooks)
        mine = copy.deepcopy(layer.state_dict())
        step(other, twin, data(), loss=0.4)
        assert twin.param_groups[0]["losses"] == saved["param_groups"][0]["losses"] + (when == "before")
        assert not torch.equal(other.weight, mine["weight"])


def test_the_loss_is_asked_for_and_nothing_changes() -> None:
    layer = linear()
    optimizer = MKORH(layer, lr=0.1)
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"MKORH reads the loss: call step\(loss=loss\), step\(closure\), or report"):
        step(layer, optimizer, data())
    assert torch.equal(layer.weight, before)
    optimizer.report(1.0)
    optimizer.step()
    with pytest.raises(RuntimeError, match="reads the loss"):
        step(layer, optimizer, data())

    def closure() -> Any:
        optimizer.zero_grad()
        loss = layer(data()).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.param_groups[0]["losses"] == 2


def test_a_loss_that_is_not_finite_is_passed_over() -> None:
    layer = linear()
    optimizer = MKORH(layer, lr=0.1)
    step(layer, optimizer, data(), loss=1.0)
    step(layer, optimizer, data(), loss=math.nan)
    assert optimizer.param_groups[0]["losses"] == 1 and optimizer.is_on


def test_before_the_switch_it_is_mkor() -> None:
    plain, hybrid = net(), net()
    train(plain, make("mkor", plain), 0, 6)
    train(hybrid, make("mkor_h", hybrid), 0, 6)
    assert all(torch.equal(p, weights(plain)[name]) for name, p in weights(hybrid).items())
