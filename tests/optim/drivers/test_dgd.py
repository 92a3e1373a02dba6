"""Delta gradient descent: gradient descent on a penalized loss, and what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyak.optim.drivers import DGD
from tests.optim.moves import random


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3, dtype=torch.float64)


def pass_through(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model.zero_grad()
    loss = (model(x) - y).square().sum(1).mean()
    loss.backward()
    return loss.detach()


@settings(deadline=None, max_examples=20)
@given(lr=st.floats(0.01, 2.0), penalty=st.floats(0.0, 3.0), rows=st.integers(1, 6))
def test_it_is_gradient_descent_on_the_loss_with_a_penalty_on_the_answers(lr: float, penalty: float, rows: int) -> None:
    model, twin = layer(), layer()
    x, y = random(1, (rows, 4), (rows, 3))
    x = x / x.norm(dim=1, keepdim=True)
    optimizer = DGD(model, lr=lr, penalty=penalty)
    pass_through(model, x, y)
    optimizer.step()
    loss = (twin(x) - y).square().sum(1).mean() + penalty / 2 * (x @ twin.weight.T).square().sum(1).mean()
    loss.backward()
    e = lr / (1 + lr)
    torch.testing.assert_close(model.weight, twin.weight - e * twin.weight.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.bias, twin.bias - lr * twin.bias.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_one_row_after_the_other(normalize: bool) -> None:
    model = layer()
    x, y = random(1, (5, 4), (5, 3))
    w = model.weight.detach().clone()
    optimizer = DGD(model, lr=0.3, penalty=0.7, order="sequential", normalize=normalize)
    slopes = 2 * (model(x).detach() - y)
    pass_through(model, x, y)
    optimizer.step()
    for one, slope in zip(x, slopes, strict=True):
        one = one / one.norm() if normalize else one
        e = 0.3 / (1 + 0.3 * one.square().sum())
        w = w - e * (0.7 * torch.outer(w @ one, one) + torch.outer(slope, one))
    torch.testing.assert_close(model.weight.detach(), w, rtol=1e-12, atol=1e-12)


def test_rows_of_zeros_and_a_momentum() -> None:
    model = layer()
    optimizer = DGD(model, lr=0.1, momentum=0.9)
    before = model.weight.detach().clone()
    pass_through(model, torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64))
    optimizer.step()
    assert torch.equal(model.weight.detach(), before)
    assert set(optimizer.state[model.weight]) == set(optimizer.state[model.bias]) == {"momentum_buffer"}


def test_other_layers_are_stepped_by_their_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)).double()
    x, y = random(1, (5, 4), (5, 3))
    optimizer = DGD(model, lr=0.1)
    before = model[1].weight.detach().clone()
    pass_through(model, x, y)
    optimizer.step()
    torch.testing.assert_close(model[1].weight.detach(), before - 0.1 * model[1].weight.grad)
    start = float(pass_through(model, x, y))
    for _ in range(50):
        optimizer.step()
        end = float(pass_through(model, x, y))
    assert end < start


class Tied(nn.Module):
    """An embedding and a head of one weight, with a linear layer between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.hidden, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        answers: Tensor = self.head(self.hidden(self.embed(tokens)))
        return answers


def test_a_tied_weight_is_refused_or_steps_with_what_all_its_uses_bring() -> None:
    model = Tied()
    with pytest.raises(ValueError, match=r"DGD: embed\.weight and head\.weight are one weight; exclude='head'"):
        DGD(model)
    assert not model.hidden._forward_hooks
    optimizer = DGD(model, lr=0.1, exclude=["head"])
    before = model.embed.weight.detach().clone()
    model(torch.tensor([0, 1, 1, 4])).square().sum(1).mean().backward()
    optimizer.step()
    torch.testing.assert_close(model.embed.weight.detach(), before - 0.1 * model.embed.weight.grad)  # type: ignore[operator]


def test_a_scaled_loss_gives_the_same_step_if_the_scaler_is_given() -> None:
    model, twin = layer(), layer()
    x, y = random(1, (5, 4), (5, 3))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled, plain = DGD(model, scaler=scaler), DGD(twin)
    for _ in range(2):
        pass_through(twin, x, y)
        plain.step()
        scaled.zero_grad()
        scaler.scale((model(x) - y).square().sum(1).mean()).backward()
        scaler.step(scaled)
        scaler.update()
    # the scale is divided out in float32
    torch.testing.assert_close(model.weight, twin.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.bias, twin.bias, rtol=1e-6, atol=1e-6)


def test_layers_of_other_kinds_and_frozen_ones_are_left_to_gradient_descent() -> None:
    model = nn.Sequential(nn.Conv1d(1, 4, 1), nn.Linear(4, 4), nn.Linear(4, 3)).double()
    model[1].requires_grad_(False)
    roles = {group["role"]: [name for name in group["param_names"]] for group in DGD(model).param_groups}
    assert roles == {"matrix": ["2.weight"], "rest": ["0.weight", "0.bias", "2.bias"]}
    with pytest.raises(ValueError, match="no layer matches exclude='4'"):
        DGD(model, exclude=["4"])
    with pytest.raises(TypeError, match="exclude must be a sequence of name patterns, got '2'"):
        DGD(model, exclude="2")
    with pytest.raises(ValueError, match="DGD: the model has no Linear layer whose weight is trained"):
        DGD(nn.LayerNorm(3))


def test_a_step_without_a_pass_and_other_mistakes() -> None:
    model = layer()
    optimizer = DGD(model)
    model.weight.grad = torch.zeros_like(model.weight)
    with pytest.raises(RuntimeError, match="no inputs of a layer with the weight weight were seen"):
        optimizer.step()
    with pytest.raises(TypeError, match="takes a module, got list"):
        DGD(list(model.parameters()))  # type: ignore[arg-type]
    bad: dict[str, Any] = {"penalty": -1.0, "order": "tokens", "lr": -0.1, "momentum": 1.0}
    for name, value in bad.items():
        with pytest.raises(ValueError, match=f"DGD: {name} must be"):
            DGD(model, **{name: value})


def test_a_layer_whose_weight_is_computed_is_named() -> None:
    computed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"the layer 0 has a weight that is computed .*; exclude='0' leaves it"):
        DGD(nn.Sequential(computed, nn.Linear(3, 2)))
