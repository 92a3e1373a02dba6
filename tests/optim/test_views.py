"""Weights that are moved for a while and put back bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak.optim import AdamW
from polyak.optim.engine import views


def ahead(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor | None:
    return None if "exp_avg" not in state else -group["lr"] * state["exp_avg"]


def stepped() -> tuple[nn.Linear, AdamW]:
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    optimizer = AdamW(net.parameters(), lr=0.1)
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return net, optimizer


def test_weights_are_moved_and_come_back_also_by_an_exception() -> None:
    net, optimizer = stepped()
    before = net.weight.detach().clone()
    with pytest.raises(KeyError), views.predicted(optimizer, ahead):
        want = before - 0.1 * optimizer.state[net.weight]["exp_avg"]
        assert torch.equal(net.weight, want)
        raise KeyError
    assert torch.equal(net.weight, before)
    assert set(optimizer.state[net.weight]) == {"exp_avg", "exp_avg_sq", "step"}
    assert "predicted" not in optimizer.param_groups[0]


def test_no_step_and_no_second_prediction_meanwhile() -> None:
    _, optimizer = stepped()
    with views.predicted(optimizer, ahead):
        with pytest.raises(RuntimeError, match="predicted"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="already"):
            views.predict(optimizer, ahead)
    optimizer.step()


def test_a_checkpoint_taken_meanwhile_can_be_restored() -> None:
    net, optimizer = stepped()
    before = net.weight.detach().clone()
    views.predict(optimizer, ahead)
    weights, saved = {k: v.clone() for k, v in net.state_dict().items()}, optimizer.state_dict()
    twin = nn.Linear(4, 3)
    twin.load_state_dict(weights)
    other = AdamW(twin.parameters(), lr=0.1)
    other.load_state_dict(saved)
    assert views.is_predicted(other)
    views.restore(other)
    assert torch.equal(twin.weight, before) and not views.is_predicted(other)


def test_a_change_that_does_not_fit_moves_no_weight() -> None:
    net, optimizer = stepped()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match=r"shape \(2, 3\) .* weight of shape \(3,\)"):
        views.predict(optimizer, lambda p, *_: torch.ones(()) if p.ndim == 2 else torch.ones(2, 3))
    assert all(map(torch.equal, before, net.parameters())) and not views.is_predicted(optimizer)
    assert all("original" not in state for state in optimizer.state.values())


def test_a_state_that_is_not_predicted_ends_the_prediction() -> None:
    net, optimizer = stepped()
    saved = optimizer.state_dict()
    saved = {**saved, "state": {i: dict(values) for i, values in saved["state"].items()}}
    views.predict(optimizer, ahead)
    optimizer.load_state_dict(saved)
    assert not views.is_predicted(optimizer)
    optimizer.step()
    assert optimizer.state[net.weight]["step"] == 2
