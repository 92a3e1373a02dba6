"""Models whose tensors or submodules are others than when the average was made: followed, or refused by name."""

import pytest
import torch
from torch import nn

from polyak.teachers import EMA
from tests.teachers.nets import assert_equal, net, state, wander


def followed(model: nn.Module, ema: EMA) -> None:
    """Half a step towards what the model holds now, tensor by tensor."""
    before = {name: value.clone() for name, value in ema.averages[0].items()}
    ema.update()
    now = model.state_dict()
    for name, value in ema.averages[0].items():
        if value.is_floating_point() and name != "frozen":
            expected = (before[name].double() + now[name].to(before[name].device).double()) / 2
            torch.testing.assert_close(value.data.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", ["inner", "norm"])
def test_exchanged_submodules_are_followed(which):
    model = net()
    ema = EMA(model, 0.5, start="teacher", buffers="average")
    ema.update()
    if which == "norm":
        model.norm = nn.BatchNorm1d(6).double()
    else:
        model.inner = nn.Linear(6, 6, bias=False).double()
        model.again.weight = model.inner.weight
    wander(model, 1)
    followed(model, ema)
    model.load_state_dict(state(net()))
    followed(model, ema)


@pytest.mark.parametrize("schedule", [0.5, [0.5, 0.5]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_moved_to_another_dtype_in_place_is_followed(dtype, schedule):
    model = net()
    ema = EMA(model, schedule, start="teacher", buffers="average")
    ema.update()
    model.to(dtype)
    wander(model, 1)
    followed(model, ema)
    assert ema.averages[0]["wide"].dtype == torch.float64


@pytest.mark.parametrize("teacher", ["copy", None])
@pytest.mark.parametrize("by", ["parameter", "data", "loading"])
def test_the_average_of_an_untied_tensor_goes_its_own_way(by, teacher):
    model = net()
    if by == "data":
        model.again.weight = nn.Parameter(model.inner.weight.data)
    ema = EMA(model, [0.5, 0.5], start="teacher", buffers="average", teacher=teacher)
    ema.update()
    past = ema.averages[0]["inner.weight"].clone()
    if by == "parameter":
        model.again.weight = nn.Parameter(torch.zeros(6, 6, dtype=torch.float64))
    elif by == "data":
        model.again.weight.data = torch.zeros(6, 6, dtype=torch.float64)
    else:
        model.load_state_dict({name: x.clone() for name, x in state(net()).items()}, assign=True)
    wander(model, 1)
    ema.update()
    for average in ema.averages:
        for name in ("inner.weight", "again.weight"):
            torch.testing.assert_close(average[name].data, (past + model.state_dict()[name]) / 2)
    followed(model, ema)
    with ema.swapped():
        assert torch.equal(model.again.weight, average["again.weight"])
    if teacher:
        assert torch.equal(ema.module.again.weight, average["again.weight"])
        assert not ema.module.again.weight.requires_grad


def test_states_are_of_the_averaged_model_as_it_is():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)).double()
    ema = EMA(model, 0.5, start="teacher")
    stored = {**ema.state_dict(), "averages": [{n: x.clone() for n, x in ema.averages[0].items()}]}
    ema.module[0] = nn.Linear(3, 3).double().requires_grad_(False)
    assert torch.equal(ema.state_dict()["averages"][0]["0.weight"], ema.module[0].weight)
    ema.load_state_dict(stored)
    assert torch.equal(ema.module[0].weight, stored["averages"][0]["0.weight"])


def test_a_model_untied_since_the_last_update_is_swapped():
    model = net()
    ema = EMA(model, 0.5, start="teacher")
    ema.update()
    model.again.weight = nn.Parameter(torch.zeros(6, 6, dtype=torch.float64))
    past = ema.averages[0]["inner.weight"].clone()
    with ema.swapped():
        assert torch.equal(model.again.weight, past) and torch.equal(model.inner.weight, past)
    assert not model.again.weight.any()


def test_an_untied_tensor_of_another_shape_is_refused_and_nothing_is_untied():
    model = net()
    ema = EMA(model, 0.5, start="teacher")
    ema.update()
    before = state(ema.module)
    model.again.weight = nn.Parameter(torch.zeros(2, 6, dtype=torch.float64))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'again\.weight' has shape \(2, 6\)"):
            ema.update()
    assert_equal(state(ema.module), before)
    assert ema.module.again.weight is ema.module.inner.weight
    assert (ema.step, ema.updates) == (1, 1)


def test_a_newly_tied_tensor_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    ema = EMA(model, 0.5, start="teacher")
    ema.update()
    before = state(ema.module)
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"missing '1\.weight'.*tied"):
        ema.update()
    assert_equal(state(ema.module), before)


@pytest.mark.parametrize("by", ["data", "prefix", "deleted", "added"])
def test_other_shapes_and_names_are_refused(by):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    ema = EMA(model, 0.5, start="teacher")
    ema.update()
    before = state(ema.module)
    name = "bias"
    if by == "data":
        model[1].bias.data = torch.ones(1)
    elif by == "prefix":
        model[1].bias.data = model[1].bias.data[:1]
    elif by == "deleted":
        del model[1]
        name = "weight"
    else:
        model.append(nn.Linear(2, 2))
        name = "weight"
    with pytest.raises(ValueError, match=rf"'{2 if by == 'added' else 1}\.{name}'"):
        ema.update()
    assert_equal(state(ema.module), before)
    assert ema.step == 1


def test_an_exchanged_teacher_and_anchor_are_followed():
    model, anchor = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    ema = EMA(model, 0.5, start="teacher", anchors=[(anchor, 0.5)])
    ema.update()
    anchor[0] = nn.Linear(2, 2)
    ema.module[0] = nn.Linear(2, 2).requires_grad_(False)
    before = state(ema.module)
    ema.update()
    for name, value in ema.module.state_dict().items():
        target = (model.state_dict()[name] + anchor.state_dict()[name]) / 2
        torch.testing.assert_close(value, (before[name] + target) / 2)


def test_a_teacher_moved_to_bfloat16_goes_on_rounding_stochastically():
    """To nearest it would stand still."""
    model = nn.Linear(100, 100)
    ema = EMA(model, 0.999, start="teacher")
    ema.update()
    with torch.no_grad():
        model.weight.fill_(2.0)
        ema.module.weight.fill_(1.0)
    ema.module.bfloat16()
    ema.update()
    assert ema.module.weight.dtype == torch.bfloat16
    assert abs(ema.module.weight.float().mean().item() - 1.001) < 1e-3 and ema.module.weight.float().max() > 1
