"""Bytes saved for backward, counted by hand; and a trace that changes nothing."""

import pytest
import torch
from torch import nn

from polyak.local import ActivationMeter, cifar_resnet, layers
from polyak.local.trace import SingleValueNorms, trace, undisturbed


def test_bytes_by_hand():
    a = torch.rand(100, requires_grad=True)
    with ActivationMeter() as meter:
        b = a.exp()  # saves its result
        c = b.sin()  # saves its argument, the same storage
        assert meter.current == 400 and meter.holds(b) and not meter.holds(c)
        d = c.tanh().sum()
        assert meter.current == meter.peak == 800
        d.backward()
    assert (meter.current, meter.peak) == (0, 800)
    with torch.no_grad():
        expected = (1 - a.exp().sin().tanh() ** 2) * a.exp().cos() * a.exp()
    torch.testing.assert_close(a.grad, expected)


def test_what_is_there_anyway_is_not_counted():
    linear, x = nn.Linear(10, 20), torch.rand(5, 10)
    with ActivationMeter([*linear.parameters(), x]) as meter:
        linear(x).relu().sum().backward()
    assert meter.peak == 5 * 20 * 4
    with ActivationMeter(linear.parameters()) as meter:
        linear(x).relu().sum().backward()
    assert meter.peak == 5 * 20 * 4 + 5 * 10 * 4


def test_dropped_graphs_are_counted_off():
    x = torch.rand(10, requires_grad=True)
    with ActivationMeter() as meter:
        for _ in range(3):
            x.exp()
    assert (meter.current, meter.peak) == (0, 40)


def test_saved_bytes_of_layers_add_up_to_those_of_the_network():
    model = cifar_resnet(20)
    x = torch.rand(2, 3, 32, 32)
    listed = layers(model)
    units = [listed.stem, *listed.layers, listed.head]
    found = trace(units, [str(i) for i in range(len(units))], x)
    with ActivationMeter([*model.parameters(), *model.buffers()]) as meter:
        out = model(x)
    del out
    assert sum(found.saved) == meter.peak
    # All layers but the first of a stage save alike, and half as much a stage on.
    assert found.saved[2] == found.saved[3] == pytest.approx(2 * found.saved[5], rel=1e-2)
    torch.testing.assert_close(found.outputs[-1].shape, model(x).shape)


def test_a_layer_may_work_in_place():
    units = [nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 1)]
    assert len(trace(units, "abc", torch.rand(2, 3)).outputs) == 3


def test_undisturbed():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(0)
    with undisturbed(model, training=True):
        assert model[1].training
        model(torch.rand(4, 3))
        assert not torch.equal(model[0].running_mean, before["0.running_mean"])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model[0].training and not model[1].training
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_single_value_norms():
    norms = nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.BatchNorm1d(2)
    model = nn.Sequential(norms[0], nn.AdaptiveAvgPool2d(1), norms[1], nn.Flatten(), norms[2])
    with SingleValueNorms(model) as seen:
        model(torch.rand(3, 2, 4, 4))
    assert seen.found == [norms[1], norms[2]]
    model(torch.rand(3, 2, 1, 1))
    assert len(seen.found) == 2  # it looks no longer
