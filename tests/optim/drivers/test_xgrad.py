"""Weight prediction: what is predicted, that it comes back, and what is refused meanwhile."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyak import optim
from polyak.optim.drivers import XGrad
from tests.optim.moves import random

BASES: dict[str, Any] = {
    "sgd": lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9),
    "adam": lambda ps: optim.Adam(ps, lr=0.1, amsgrad=True),
    "adamw": lambda ps: optim.AdamW(ps, lr=0.1),
    "adamw, bfloat16": lambda ps: optim.AdamW(ps, lr=0.1, state_storage="bfloat16"),
    "lion": lambda ps: optim.Lion(ps, lr=0.1),
    "muon": lambda ps: optim.Muon(ps, lr=0.1),
    "torch sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "torch adamw": lambda ps: torch.optim.AdamW(ps, lr=0.1),
    "torch rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.1),
}


def net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3, bias=False, dtype=torch.float64)


def backward(model: nn.Module, t: int) -> Tensor:
    (x,) = random(t, (5, 4))
    loss = model(x).square().sum()
    loss.backward()
    return loss


def train(model: nn.Module, ahead: XGrad, first: int, last: int) -> None:
    for t in range(first, last):
        ahead.optimizer.zero_grad()
        with ahead.predicted():
            backward(model, t)
        ahead.step()


@pytest.mark.parametrize("name", BASES)
def test_no_steps_ahead_is_the_optimizer_itself(name: str) -> None:
    model, twin = net(), net()
    optimizer = BASES[name](twin.parameters())
    train(model, XGrad(BASES[name](model.parameters()), steps_ahead=0), 0, 4)
    for t in range(4):
        optimizer.zero_grad()
        backward(twin, t)
        optimizer.step()
    assert torch.equal(model.weight, twin.weight)


@pytest.mark.parametrize("name", BASES)
def test_the_weights_are_moved_from_the_second_step_on_and_come_back_bit_for_bit(name: str) -> None:
    model = net()
    ahead = XGrad(BASES[name](model.parameters()))
    for t in range(4):
        before = model.weight.detach().clone()
        with ahead.predicted():
            assert ahead.is_predicted and torch.equal(model.weight, before) == (t == 0)
            backward(model, t)
        assert torch.equal(model.weight, before) and not ahead.is_predicted
        ahead.step()


@pytest.mark.parametrize("name", ["sgd", "adam", "torch sgd", "torch adamw"])
def test_without_decay_the_memories_predict_the_last_step_again(name: str) -> None:
    model = net()
    optimizer = BASES[name](model.parameters())
    optimizer.param_groups[0] |= {"weight_decay": 0.0, "amsgrad": False}
    ahead = XGrad(optimizer, steps_ahead=2.5)
    train(model, ahead, 0, 3)
    before = model.weight.detach().clone()
    train(model, ahead, 3, 4)
    now = model.weight.detach().clone()
    ahead.predict()
    torch.testing.assert_close(model.weight.detach(), now + 2.5 * (now - before), rtol=1e-9, atol=1e-12)


def test_another_optimizer_is_predicted_to_repeat_its_step_at_the_lr_of_now() -> None:
    model = net()
    optimizer = BASES["torch rmsprop"](model.parameters())
    ahead = XGrad(optimizer, steps_ahead=2)
    before = model.weight.detach().clone()
    train(model, ahead, 0, 1)
    now = model.weight.detach().clone()
    optimizer.param_groups[0]["lr"] *= 0.5
    ahead.predict()
    torch.testing.assert_close(model.weight.detach(), now + (now - before), rtol=1e-12, atol=1e-12)


def test_the_lr_is_that_of_now() -> None:
    model = net()
    optimizer = BASES["sgd"](model.parameters())
    ahead = XGrad(optimizer)
    train(model, ahead, 0, 2)
    now, buffer = model.weight.detach().clone(), optimizer.state[model.weight]["momentum_buffer"].clone()
    optimizer.param_groups[0]["lr"] = 0.01
    ahead.predict()
    torch.testing.assert_close(model.weight.detach(), now - 0.01 * buffer, rtol=1e-14, atol=0)


def test_the_closure_runs_at_the_predicted_weights_and_the_step_from_the_true_ones() -> None:
    model, twin = net(), net()
    ahead, by_hand = (XGrad(BASES["adamw"](m.parameters())) for m in (model, twin))
    train(twin, by_hand, 0, 4)
    for t in range(4):

        def closure(t: int = t) -> Tensor:
            model.zero_grad()
            return backward(model, t)

        loss = ahead.step(closure)
        assert loss > 0
    assert torch.equal(model.weight, twin.weight)


def test_an_exception_in_the_block_leaves_the_true_weights_and_a_step_that_works() -> None:
    model = net()
    ahead = XGrad(BASES["adam"](model.parameters()))
    train(model, ahead, 0, 2)
    before = model.weight.detach().clone()
    with pytest.raises(KeyError), ahead.predicted():
        raise KeyError
    with pytest.raises(KeyError):
        ahead.step(lambda: {}["no loss"])
    assert torch.equal(model.weight, before) and not ahead.is_predicted
    train(model, ahead, 2, 3)


def test_an_evaluation_between_restore_and_step_sees_the_true_weights_and_changes_nothing() -> None:
    model, twin = net(), net()
    ahead, other = (XGrad(BASES["sgd"](m.parameters())) for m in (model, twin))
    train(twin, other, 0, 4)
    for t in range(4):
        model.zero_grad()
        before = model.weight.detach().clone()
        with ahead.predicted():
            backward(model, t)
        with torch.no_grad():
            model.eval()
            assert torch.equal(model(torch.eye(4, dtype=torch.float64)).T, before)
            model.train()
        ahead.step()
    assert torch.equal(model.weight, twin.weight)


@pytest.mark.parametrize("name", ["sgd", "adamw", "torch adamw", "torch rmsprop"])
def test_a_checkpoint_taken_while_predicted_has_the_true_weights(name: str, tmp_path: Any) -> None:
    model = net()
    ahead = XGrad(BASES[name](model.parameters()))
    train(model, ahead, 0, 3)
    before = model.weight.detach().clone()
    ahead.predict()
    torch.save((model.state_dict(), ahead.optimizer.state_dict()), tmp_path / "saved.pt")
    ahead.restore()

    weights, state = torch.load(tmp_path / "saved.pt")
    assert torch.equal(state["state"][0]["original"], before) and not torch.equal(weights["weight"], before)
    twin = net()
    twin.load_state_dict(weights)
    other = XGrad(BASES[name](twin.parameters()))
    other.optimizer.load_state_dict(state)
    assert other.is_predicted
    other.restore()
    assert torch.equal(twin.weight, before)
    train(model, ahead, 3, 6)
    train(twin, other, 3, 6)
    assert torch.equal(model.weight, twin.weight)


@pytest.mark.parametrize("name", BASES)
def test_training_resumes_bit_for_bit(name: str) -> None:
    model = net()
    ahead = XGrad(BASES[name](model.parameters()))
    train(model, ahead, 0, 3)
    twin = net()
    twin.load_state_dict(model.state_dict())
    other = XGrad(BASES[name](twin.parameters()))
    other.optimizer.load_state_dict(copy.deepcopy(ahead.optimizer.state_dict()))
    train(model, ahead, 3, 6)
    train(twin, other, 3, 6)
    assert torch.equal(model.weight, twin.weight)


@pytest.mark.parametrize("name", BASES)
def test_no_second_prediction_no_step_and_no_load_meanwhile(name: str) -> None:
    model = net()
    ahead = XGrad(BASES[name](model.parameters()))
    train(model, ahead, 0, 2)
    saved = copy.deepcopy(ahead.optimizer.state_dict())
    ahead.predict()
    there = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"predicted already; restore\(\)"):
        ahead.predict()
    with pytest.raises(RuntimeError, match=r"restore\(\) them before the step"):
        ahead.step()
    with pytest.raises(RuntimeError, match=r"restore\(\) them before the step"):
        ahead.optimizer.step()
    with pytest.raises(RuntimeError, match="predicted"):
        ahead.step(lambda: backward(model, 2))
    with pytest.raises(RuntimeError, match="before a state is loaded"):
        ahead.optimizer.load_state_dict(saved)
    assert torch.equal(model.weight, there)
    ahead.restore()
    ahead.restore()
    train(model, ahead, 2, 3)


def test_a_weight_that_has_not_stepped_is_not_moved() -> None:
    model, late = net(), nn.Parameter(torch.ones(3, dtype=torch.float64))
    for make in (BASES["adamw"], BASES["torch rmsprop"]):
        ahead = XGrad(make([*model.parameters(), late]))
        train(model, ahead, 0, 2)
        with ahead.predicted():
            assert torch.equal(late, torch.ones(3))


def test_a_released_optimizer_is_refused() -> None:
    model = net()
    optimizer = BASES["adam"](model.parameters())
    optim.release_gradients(optimizer)
    with pytest.raises(RuntimeError, match="steps in the backward pass"):
        XGrad(optimizer).predict()


@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), float("inf")])
def test_steps_ahead_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match=r"XGrad: steps_ahead must be finite and at least 0, got"):
        XGrad(BASES["sgd"](net().parameters()), steps_ahead=value)


@pytest.mark.parametrize("value", ["1", None, True])
def test_steps_ahead_of_another_kind(value: Any) -> None:
    with pytest.raises(TypeError, match="XGrad: steps_ahead must be a number, got"):
        XGrad(BASES["sgd"](net().parameters()), steps_ahead=value)


def test_what_is_no_optimizer() -> None:
    with pytest.raises(TypeError, match=r"XGrad: optimizer must be a torch\.optim\.Optimizer"):
        XGrad(net())  # type: ignore[arg-type]


@settings(deadline=None, max_examples=20)
@given(h=st.floats(0.05, 3.0), s=st.sampled_from([0.0, 1.0, 2.0, 3.0]))
def test_on_a_quadratic_it_is_the_linear_map_of_the_paper(h: float, s: float) -> None:
    """Heavy ball at lr * L = h: (lr m, w) goes by [[mu - s h, h], [-(mu - s h), 1 - h]]."""
    mu, w = 0.9, nn.Parameter(torch.ones((), dtype=torch.float64))
    ahead = XGrad(optim.SGD([w], lr=h, momentum=mu), steps_ahead=s)
    step = torch.tensor([[mu - s * h, h], [-(mu - s * h), 1 - h]], dtype=torch.float64)
    want = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for _ in range(6):
        w.grad = None
        ahead.step(lambda: (0.5 * w.square()).backward())
        want = step @ want
        torch.testing.assert_close(w.detach(), want[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("s", "h", "radius"),
    [(0, 0.5, 0.949), (0, 1.0, 0.949), (1, 0.5, 0.63), (1, 1.0, 0.37), (2, 0.5, 0.57), (2, 1.0, 1.73)],
)
def test_damping_and_the_stable_range_on_a_quadratic(s: int, h: float, radius: float) -> None:
    """The rate at which a long run shrinks is the spectral radius."""
    w = nn.Parameter(torch.ones((), dtype=torch.float64))
    ahead = XGrad(optim.SGD([w], lr=h, momentum=0.9), steps_ahead=s)
    sizes = []
    for _ in range(60):
        w.grad = None
        ahead.step(lambda: (0.5 * w.square()).backward())
        sizes.append(float(w.detach().abs()) + float(ahead.optimizer.state[w]["momentum_buffer"].abs()) * h)
    rate = (max(sizes[50:]) / max(sizes[20:30])) ** (1 / 30)
    assert rate == pytest.approx(radius, rel=0.03)
