"""Rules that read what flows through layers."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from polyak.optim import Optimizer, Rule, Slot, chain, factory
from polyak.optim.engine.layers import Layer, find_layers
from polyak.optim.engine.taps import LayerTaps, Taps
from polyak.optim.rules import descend


@factory
def natural(damping: float = 1.0) -> Rule:
    """The direction times the inverse of the damped second moment of the inputs; remembers that of the outputs."""

    def update(x: Any, s: Any, c: Any) -> Any:
        inputs, gradients = c.inputs, c.output_gradients
        second = inputs.T @ inputs / len(inputs) + damping * torch.eye(inputs.shape[1], dtype=inputs.dtype)
        direction = torch.linalg.solve(second, x.u.T).T
        return x.but(u=direction), {"factor": gradients.T @ gradients}

    slot = Slot("factor", "second moment of the output gradients", shape=lambda shape: (shape[0], shape[0]))
    return Rule("natural", update, slots=(slot,), inputs=("inputs", "output_gradients"))


@pytest.mark.parametrize("execution", ["eager", "batched", "compiled"])
def test_a_linear_layer_steps_by_its_inputs(execution: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2, bias=False).double()
    before = layer.weight.detach().clone()
    optimizer = Optimizer(layer.parameters(), chain(natural(), descend()), lr=0.1, execution=execution)
    optimizer.tap(layer)
    parts = [torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)]
    for part in parts:  # two passes, one step
        layer(part).square().sum().backward()
    optimizer.step()
    x = torch.cat(parts)
    out = x @ before.T
    gradient = 2 * out.T @ x
    want = before - 0.1 * gradient @ torch.linalg.inv(x.T @ x / 9 + torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(layer.weight.detach(), want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(optimizer.state[layer.weight]["factor"], 4 * out.T @ out, rtol=1e-10, atol=1e-12)


def test_a_convolution_is_a_matrix_of_patches() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False).double()
    optimizer = Optimizer(layer.parameters(), chain(natural(1e-3), descend()), lr=0.1, execution="eager")
    optimizer.tap(layer)
    layer(torch.randn(2, 2, 5, 5, dtype=torch.float64)).square().sum().backward()
    gradient = layer.weight.grad
    seen = optimizer._taps.by_name()  # type: ignore[union-attr]
    x, d = (seen[name][id(layer.weight)] for name in ("inputs", "output_gradients"))
    assert x.shape == (2 * 9, 2 * 9) and d.shape == (2 * 9, 3)
    torch.testing.assert_close((d.T @ x).view_as(layer.weight), gradient, rtol=1e-10, atol=1e-12)
    optimizer.step()
    assert not optimizer._taps.by_name()["inputs"]  # type: ignore[union-attr]


def test_what_is_missing_is_named() -> None:
    layer = nn.Linear(3, 2, bias=False)
    optimizer = Optimizer(layer.named_parameters(), chain(natural(), descend()), lr=0.1)
    layer(torch.ones(1, 3)).sum().backward()
    with pytest.raises(RuntimeError, match=r"call tap\(model\) before the passes"):
        optimizer.step()
    optimizer.tap(layer)
    with pytest.raises(RuntimeError, match="no inputs of a layer with the weight weight"):
        optimizer.step()


def test_inputs_and_gradients_of_one_use_are_pairs() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 3, bias=False).double()
    taps = Taps(find_layers(layer, (), "Taps"))
    layer(torch.full((7, 3), 9.0, dtype=torch.float64))  # without a backward pass: as if it had not been
    x = torch.randn(4, 3, dtype=torch.float64)
    layer(layer(x).tanh()).square().sum().backward()  # twice in one pass, so the second use comes back first
    seen = taps.by_name()
    inputs, gradients = (seen[name][id(layer.weight)] for name in ("inputs", "output_gradients"))
    assert inputs.shape == gradients.shape == (8, 3)
    torch.testing.assert_close(gradients.T @ inputs, layer.weight.grad, rtol=1e-12, atol=1e-14)
    taps.clear()
    assert taps.by_name() == {"inputs": {}, "output_gradients": {}}


def test_a_weight_that_was_not_seen_is_named() -> None:
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    taps = Taps(find_layers(net, (), "Taps"))
    net[0](torch.ones(1, 3)).sum().backward()
    taps.check_seen([("0.weight", net[0].weight)], taps.by_name()["inputs"])
    with pytest.raises(RuntimeError, match=r"no inputs of a layer with the weight 1\.weight were seen"):
        taps.check_seen(net.named_parameters(), taps.by_name()["inputs"])
    taps.clear()
    with pytest.raises(RuntimeError, match=r"the weight 0\.weight"):
        taps.check_seen(net.named_parameters(), taps.by_name()["inputs"])


def test_rows_are_kept_without_the_one_for_the_bias_and_unscaled() -> None:
    model = nn.Linear(3, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    taps = Taps(find_layers(model, (), "Taps"), scaler)
    x = torch.randn(4, 2, 3)
    scaler.scale(model(x).sum()).backward()
    seen = taps.by_name()
    assert torch.equal(seen["inputs"][id(model.weight)], x.flatten(0, 1))
    assert torch.equal(seen["output_gradients"][id(model.weight)], torch.ones(8, 2))
    taps.remove()
    assert not model._forward_hooks


def test_a_tap_that_is_refused_leaves_the_one_before() -> None:
    layer, tied = nn.Linear(3, 3, bias=False), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    optimizer = Optimizer(layer.parameters(), chain(natural(), descend()), lr=0.1, execution="eager")
    optimizer.tap(layer)
    with pytest.raises(ValueError, match=r"Optimizer: 0\.weight and 1\.weight are one weight"):
        optimizer.tap(tied)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()


class Sums:
    """Adds up the squares of what goes in, and of the gradients by what comes out."""

    def enter(self, layer: Layer, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(0, 1).T @ x.flatten(0, 1)

    def leave(self, layer: Layer, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.flatten(0, 1).T @ gradient.flatten(0, 1)


def listening(model: nn.Module, **more: Any) -> tuple[Sums, LayerTaps, list[Layer]]:
    collector = Sums()
    taps, layers = LayerTaps(collector, **more), find_layers(model, (), "Sums")
    for layer in layers:
        taps.listen(layer, True)
    return collector, taps, layers


def test_statistics_of_a_layer_with_its_bias_as_a_column() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)).double()
    _, taps, (layer,) = listening(model)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    out = model(x)  # what the ReLU does in place is not seen
    out.square().sum().backward()
    seen = taps.seen[layer]
    ones = torch.cat([x, torch.ones(2, 5, 1, dtype=torch.float64)], -1).flatten(0, 1)
    torch.testing.assert_close(seen.entered, ones.T @ ones)
    g = 2 * out.detach().flatten(0, 1)
    torch.testing.assert_close(seen.left, g.T @ g)
    assert (seen.passes, seen.samples, seen.rows, seen.positions) == (1, 2, 10, 5)
    model(x).sum().backward()
    assert (seen.passes, seen.samples, seen.rows) == (2, 4, 20)


@pytest.mark.parametrize("padding", [1, "same", "valid", (0, 1)])
def test_a_convolution_is_its_patches(padding: Any) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 3, padding=padding, dilation=2).double()
    (layer,) = find_layers(model, (), "Sums")
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    rows, out = layer.entered(x), model(x)
    weight = layer.join([model.weight, model.bias])
    torch.testing.assert_close(rows @ weight.T, layer.left(out))
    torch.testing.assert_close(layer.entered(x[0])[0], rows[0])
    weight_again, bias = layer.part(weight)
    assert torch.equal(weight_again, model.weight) and torch.equal(bias, model.bias)


@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 5, 4), (2, 3, 5, 4)])
@pytest.mark.parametrize("bias", [False, True])
def test_what_is_done_in_place_behind_a_layer_hides_nothing(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=bias), nn.ELU(inplace=True)).double()
    _, taps, (layer,) = listening(model)
    x = torch.randn(shape, dtype=torch.float64)
    model(x).square().sum().backward()
    linear = model[0](x).detach().requires_grad_()
    nn.functional.elu(linear).square().sum().backward()
    g = linear.grad.reshape(-1, 3)  # type: ignore[union-attr]
    torch.testing.assert_close(taps.seen[layer].left, g.T @ g)


def test_what_is_done_in_place_behind_one_picture_hides_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True))
    _, taps, (layer,) = listening(model)
    model(torch.randn(2, 5, 5)).sum().backward()
    assert (taps.seen[layer].samples, taps.seen[layer].rows) == (1, 9)


def test_a_layer_that_is_not_listened_to_has_no_hook() -> None:
    model = nn.Linear(3, 2)
    _, taps, (layer,) = listening(model)
    loss = model(torch.ones(1, 3)).sum()
    taps.listen(layer, False)
    loss.backward()  # the pass began while it was listened to
    assert not model._forward_hooks and not taps.seen and not taps.listens(layer)


def test_uses_in_one_pass_are_added_and_arguments_may_be_named() -> None:
    model = nn.Linear(3, 3, bias=False).double()
    _, taps, (layer,) = listening(model)
    model(input=model(torch.ones(2, 3, dtype=torch.float64))).sum().backward()
    assert (taps.seen[layer].passes, taps.seen[layer].rows) == (2, 4)


def test_recomputed_layers_are_seen_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    _, taps, layers = listening(model)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=True).sum().backward()
    assert [taps.seen[layer].passes for layer in layers] == [1, 1]


def test_a_copied_model_has_deaf_hooks() -> None:
    model = nn.Linear(3, 2)
    _, taps, _ = listening(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(torch.ones(1, 3)).sum().backward()
        assert not taps.seen
