"""The averages by value: schedules, buffers, kinds of tensors, several averages and sources, precision, resuming."""

import copy
import io
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polyak.teachers import EMA, Constant, Cosine, Power, Uniform, Warmup, reconstruct, update_bn
from tests.teachers.nets import Net, assert_equal, net, state, wander


def line(*values: float, dtype: torch.dtype = torch.float64) -> nn.Linear:
    """A model of one weight row."""
    model = nn.Linear(len(values), 1, bias=False, dtype=dtype)
    put(model, *values)
    return model


def put(model: nn.Linear, *values: float) -> None:
    with torch.no_grad():
        model.weight.copy_(torch.tensor([values], dtype=torch.float64))


@pytest.mark.parametrize("execution", ["auto", "batched"])
def test_every_tensor_moves_as_it_should(execution):
    model = net()
    ema = EMA(model, [0.9, 0.5], start="teacher", buffers="average", execution=execution)
    before = state(model)
    wander(model, 1)
    ema.update()
    after = state(model)
    for decay, average in zip((0.9, 0.5), ema.averages, strict=True):
        for name, value in average.items():
            if not value.is_floating_point() or name == "frozen":
                assert torch.equal(value, after[name]), name
            else:
                torch.testing.assert_close(value.detach(), decay * before[name] + (1 - decay) * after[name])


def test_tied_weights_are_averaged_once():
    model = net()
    ema = EMA(model, 0.5)
    assert "again.weight" not in ema.averages[0]
    assert ema.module.again.weight is ema.module.inner.weight is ema.averages[0]["inner.weight"]


def test_parameters_that_share_memory_stay_together():
    model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    model[1].weight = nn.Parameter(model[0].weight.detach())
    ema = EMA(model, 0.5)
    wander(model[0], 1)
    ema.update()
    assert torch.equal(ema.module[1].weight, model[0].weight)
    old = model[0].weight.detach().clone()
    wander(model[0], 2)
    with ema.swapped():
        assert torch.equal(model[1].weight, old) and torch.equal(model[0].weight, old)
    assert model[0].weight.data_ptr() == model[1].weight.data_ptr()


@pytest.mark.parametrize(("buffers", "expected"), [("copy", 8.0), ("average", 6.0), ("keep", 4.0)])
def test_buffer_policies(buffers, expected):
    model = nn.BatchNorm1d(1)
    model.running_mean.fill_(4)
    ema = EMA(model, 0.5, start="teacher", buffers=buffers)
    model.running_mean.fill_(8)
    model.num_batches_tracked.fill_(3)
    ema.update()
    assert ema.module.running_mean.item() == expected
    assert ema.module.num_batches_tracked.item() == (0 if buffers == "keep" else 3)  # what it counts stays as well


def test_start_conventions():
    for start, expected in (("average", 8.0), ("teacher", 5.0)):
        model = line(4.0)
        ema = EMA(model, 0.75, start=start)
        put(model, 8.0)
        ema.update()
        assert ema.module.weight.item() == expected


def test_a_frozen_teacher_and_a_copy_are_exact():
    model = net()
    ema = EMA(model, [1.0, 0.0], start="teacher")
    before = state(model)
    wander(model, 3)
    ema.update()
    kept, copied = ema.averages
    for name, parameter in model.named_parameters():
        assert torch.equal(copied[name], parameter)
        if parameter.requires_grad:
            assert torch.equal(kept[name], before[name])


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20), st.integers(1, 4))
def test_uniform_is_the_mean_of_what_it_took(values, every):
    model = line(0.0)
    ema = EMA(model, Uniform(), update_every=every)
    for value in values:
        put(model, value)
        ema.update()
    taken = values[::every]
    assert (ema.step, ema.updates) == (len(values), len(taken))
    assert ema.module.weight.item() == pytest.approx(sum(taken) / len(taken), abs=1e-9)


def test_power_knows_the_distance_of_its_updates():
    """With updates 10 steps apart it follows EDM2's profile and not one ten times as long."""
    gamma, every, steps = 3.0, 10, 4001
    model = line(0.0)
    ema = EMA(model, Power(gamma=gamma), update_every=every)
    for t in range(1, steps + 1):
        put(model, float(t))
        ema.update()
    assert ema.module.weight.item() / steps == pytest.approx((gamma + 1) / (gamma + 2), rel=0.01)


def test_several_averages_are_those_of_several_objects():
    model = net()
    schedules = [Constant(0.9), Uniform(), Power(0.1), Warmup(0.99)]
    together, alone = (
        EMA(model, schedules, execution="batched"),
        [EMA(model, s, execution="batched") for s in schedules],
    )
    for step in range(5):
        wander(model, step)
        for ema in (together, *alone):
            ema.update()
    for average, ema in zip(together.averages, alone, strict=True):
        for name, value in ema.averages[0].items():
            torch.testing.assert_close(average[name], value, rtol=1e-14, atol=0)


@pytest.mark.parametrize("execution", ["auto", "batched"])
def test_two_anchors_pull_the_average_between_them(execution):
    """CTP: mu e + (1 - mu)/2 theta + (1 - mu)/2 reference, with a fixed point in the middle."""
    model, reference = net(), net()
    wander(reference, 5)
    ema = EMA(model, 0.9, start="teacher", anchors=[(reference, 0.5)], execution=execution)
    before = state(model)
    wander(model, 6)
    ema.update()
    for name in ("inner.weight", "wide"):
        expected = 0.9 * before[name] + 0.05 * state(model)[name] + 0.05 * state(reference)[name]
        torch.testing.assert_close(ema.averages[0][name].detach(), expected)
    for _ in range(400):
        ema.update()
    middle = (model.wide + reference.wide) / 2
    torch.testing.assert_close(ema.module.wide.data, middle.data, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("execution", ["auto", "batched"])
def test_averages_of_half_precision_keep_small_steps(execution):
    model = net(torch.bfloat16)
    ema = EMA(model, 0.999, start="teacher", execution=execution)
    assert all(v.dtype == torch.float32 for v in ema.averages[0].values() if v.is_floating_point())
    before = {name: value.double() for name, value in ema.averages[0].items()}
    wander(model, 1)
    ema.update()
    for name in ("inner.weight", "wide"):
        expected = before[name] * 0.999 + 0.001 * dict(model.named_parameters())[name].double()
        torch.testing.assert_close(ema.averages[0][name].double(), expected, rtol=1e-6, atol=1e-7)


def test_bfloat16_averages_move_in_the_mean():
    model = nn.Linear(100_000, 1, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema = EMA(model, 0.999, start="teacher", dtype=torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(2.0)
    for _ in range(20):
        ema.update()
    assert ema.module.weight.dtype == torch.bfloat16
    assert ema.module.weight.double().mean().item() == pytest.approx(2 - 0.999**20, abs=1e-4)


def test_complex_weights_are_averaged():
    model = nn.ParameterList([torch.randn(3, dtype=torch.complex64), torch.randn(200, 300, dtype=torch.complex64)])
    ema = EMA(model, 0.75, start="teacher")
    before = state(model)
    with torch.no_grad():
        for p in model:
            p.mul_(1j)
    ema.update()
    for name, value in ema.averages[0].items():
        torch.testing.assert_close(value.detach(), 0.75 * before[name] + 0.25 * 1j * before[name])


@pytest.mark.parametrize("execution", ["auto", "batched"])
def test_layouts_with_other_strides(execution):
    model = nn.Conv2d(64, 96, 3).to(memory_format=torch.channels_last)
    teacher = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    ema = EMA(model, 0.5, start="teacher", teacher=teacher, execution=execution)
    before = state(model)
    wander(model, 1)
    ema.update()
    torch.testing.assert_close(teacher.weight.data, (before["weight"] + model.weight.data) / 2)


def test_tensors_that_are_replaced_are_found_again():
    model = net(torch.float32)
    ema = EMA(model, 0.5, buffers="average")
    ema.update()
    model.double()
    model.load_state_dict(state(net()), assign=True)
    ema.update()
    expected = net()
    for name, value in ema.averages[0].items():
        torch.testing.assert_close(value.double(), expected.state_dict()[name].double(), rtol=1e-6, atol=1e-6)


def test_unfreezing_is_noticed():
    model = net()
    ema = EMA(model, 0.5, start="teacher")
    ema.update()
    model.frozen.requires_grad_(True)
    before = state(model)["frozen"]
    wander(model, 1)
    ema.update()
    torch.testing.assert_close(ema.module.frozen.data, (before + model.frozen.data) / 2)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_resumed_is_uninterrupted_bit_for_bit(dtype):
    def make(model: Net) -> EMA:
        schedules = [Constant(0.9), Warmup(0.99), Cosine(20, 0.9, 1.0)]
        return EMA(model, schedules, buffers="average", update_every=2, dtype=dtype)

    model = net(torch.float32)
    straight = make(model)
    for step in range(12):
        wander(model, step)
        straight.update()
        if step == 5:
            file = io.BytesIO()
            torch.save({"model": model.state_dict(), "ema": straight.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    model = net(torch.float32)
    model.load_state_dict(stored["model"])
    resumed = make(model)
    resumed.load_state_dict(stored["ema"])
    for step in range(6, 12):
        wander(model, step)
        resumed.update()
    assert (resumed.step, resumed.updates) == (straight.step, straight.updates) == (12, 6)
    for got, want in zip(resumed.averages, straight.averages, strict=True):
        assert_equal(got, want)


def test_the_noise_of_a_second_average_resumes_bit_for_bit():
    model = net(torch.float32)
    one, other = (
        EMA(model, [0.9, 0.99], teacher=[net(torch.float32).eval(), net(torch.bfloat16).eval()], seed=seed)
        for seed in (0, 5)
    )
    one.update()
    other.load_state_dict(one.state_dict())
    for step in range(3):
        wander(model, step)
        one.update()
        other.update()
    assert_equal(other.averages[1], one.averages[1])


def test_rebuilt_after_the_run_is_what_was_tracked():
    """A power average of width 0.07 from snapshots of 0.05 and 0.10."""
    model = line(*[0.0] * 16)
    ema = EMA(model, [Power(0.05), Power(0.10), Power(0.07)])
    source, snapshots = torch.Generator().manual_seed(0), []
    for t in range(1, 801):
        put(model, *(torch.randn(16, generator=source) + 10 * t / 800).tolist())
        ema.update()
        if t % 50 == 0:
            snapshots += [ema.snapshot(0), ema.snapshot(1)]
    tracked = ema.averages[2]["weight"]
    rebuilt = reconstruct(snapshots, 0.07)["weight"]
    assert (rebuilt - tracked).norm() / tracked.norm() < 1e-2
    assert torch.equal(reconstruct(snapshots[-2:], 0.05)["weight"].float(), ema.averages[0]["weight"].float())


def test_rebuilding_from_files(tmp_path):
    model = net(torch.float32)
    ema = EMA(model, [Power(0.05), Power(0.10)])
    snapshots, paths = [], []
    for step in range(6):
        wander(model, step)
        ema.update()
        for which in (0, 1):
            snapshots.append(ema.snapshot(which))
            paths.append(tmp_path / f"{step}-{which}.pt")
            torch.save(snapshots[-1], paths[-1])
    assert_equal(reconstruct(paths, 0.08), reconstruct(snapshots, 0.08))
    assert torch.equal(reconstruct(paths, 0.08)["mask"], model.mask)


def test_update_bn():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3)).eval()
    batches = [torch.randn(10, 3) for _ in range(4)]
    update_bn(model, [(x, "label") for x in batches])
    with torch.no_grad():
        hidden = [model[0](x) for x in batches]
    torch.testing.assert_close(model[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert model[1].momentum == 0.3 and not any(m.training for m in model.modules())
    update_bn(nn.Linear(2, 2), iter(()))  # nothing to do, nothing read
    with pytest.raises(ValueError, match="batches"):
        update_bn(model, [])


def test_a_run_longer_than_its_schedule_warns_once():
    ema = EMA(line(1.0), Cosine(2))
    ema.update()
    ema.update()
    with pytest.warns(RuntimeWarning, match="longer"):
        ema.update()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ema.update()


def test_a_teacher_whose_statistics_are_overwritten_warns_once():
    ema = EMA(net(), 0.9)
    ema.module.train()
    with pytest.warns(RuntimeWarning, match="overwritten"):
        ema.update()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ema.update()


def test_the_averaged_model_is_a_teacher():
    model = net()
    ema = EMA(model, 0.9)
    ema.update()
    x = torch.randn(4, 6, dtype=torch.float64)
    got = ema(x)
    assert not got.requires_grad and not ema.module.training
    assert torch.equal(got, model.eval()(x))
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert ema.module.inner.weight.data_ptr() != model.inner.weight.data_ptr()


def test_averages_need_no_module():
    model = net()
    ema = EMA(model, 0.5, teacher=None)
    wander(model, 1)
    ema.update()
    assert torch.equal(ema.averages[0]["wide"], model.wide)
    with pytest.raises(RuntimeError, match="teacher"):
        _ = ema.module


@pytest.mark.gpu
def test_averages_on_another_device():
    model = net(torch.float32).cuda()
    ema = EMA(model, [0.5, 0.9], start="teacher", device="cpu")
    before = state(model)
    wander(model.cpu(), 1)
    model.cuda()
    ema.update()
    expected = (before["wide"].cpu() + model.wide.detach().cpu()) / 2
    assert ema.averages[0]["wide"].device.type == "cpu"
    torch.testing.assert_close(ema.averages[0]["wide"].data, expected)
