"""Rules that read what flows through layers."""

from typing import Any

import pytest
import torch
from torch import nn

from polyak.optim import Optimizer, Rule, Slot, chain, factory
from polyak.optim.engine.taps import Taps
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
    taps = Taps(layer)
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
    taps = Taps(net)
    net[0](torch.ones(1, 3)).sum().backward()
    taps.check_seen([("0.weight", net[0].weight)])
    with pytest.raises(RuntimeError, match=r"no inputs of a layer with the weight 1\.weight were seen"):
        taps.check_seen(net.named_parameters())
    taps.clear()
    with pytest.raises(RuntimeError, match=r"the weight 0\.weight"):
        taps.check_seen(net.named_parameters())
