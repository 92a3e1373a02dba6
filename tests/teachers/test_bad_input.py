"""Errors name the argument, the value and what is allowed, and change nothing."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from polyak.teachers import EMA, Constant, Cosine, HalfLife, Power, Ramp, Uniform, Warmup, reconstruct
from tests.teachers.nets import assert_equal, net, state, wander


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Constant(1.5), "beta"),
        (lambda: Constant(math.nan), "beta"),
        (lambda: EMA(net(), -0.1), "beta"),
        (lambda: Warmup(power=-1.0), "power"),
        (lambda: Ramp(decay=2.0), "decay"),
        (lambda: HalfLife(0.0), "half_life"),
        (lambda: HalfLife(5.0, rampup_ratio=-1.0), "rampup_ratio"),
        (lambda: Power(0.3), "sigma_rel"),
        (lambda: Power(gamma=-1.0), "gamma"),
        (lambda: Power(), "sigma_rel or gamma"),
        (lambda: Power(0.1, gamma=1.0), "sigma_rel or gamma"),
        (lambda: Cosine(0), "steps"),
        (lambda: Cosine(5, start=1.1), "start"),
    ],
)
def test_schedules(make, name):
    with pytest.raises(ValueError, match=name):
        make()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"start": "init"}, "start"),
        ({"buffers": "ignore"}, "buffers"),
        ({"dtype": torch.float16}, "dtype"),
        ({"update_every": 0}, "update_every"),
        ({"nonfinite": "warn"}, "nonfinite"),
        ({"execution": "eager"}, "execution"),
        ({"schedule": []}, "schedule"),
        ({"anchors": [(net(), -0.1)]}, "anchors"),
        ({"anchors": [(net(), 0.6), (net(), 0.6)]}, "anchors"),
        ({"anchors": [(nn.Linear(2, 2), 0.5)]}, "unexpected 'weight'"),
        ({"teacher": nn.Linear(2, 2)}, "missing 'inner.weight'"),
        ({"teacher": "share"}, "teacher"),
        ({"teacher": net(), "schedule": [0.9, 0.99]}, "teacher"),
        ({"teacher": net(), "dtype": torch.float64}, "dtype and device"),
    ],
)
def test_arguments(options: dict[str, Any], name):
    with pytest.raises(ValueError, match=name):
        EMA(net(), **options)


@pytest.mark.parametrize("options", [{"schedule": "0.9"}, {"schedule": True}, {"teacher": 3}])
def test_types(options):
    with pytest.raises(TypeError, match=next(iter(options))):
        EMA(net(), **options)


def test_tensors_without_memory_are_named():
    with pytest.raises(ValueError, match=r"weight.*bias"):
        EMA(nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match=r"'0\.weight'"):
        EMA(nn.Sequential(nn.LazyLinear(3)))
    model = nn.Module()
    model.entries = nn.Parameter(torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match="entries"):
        EMA(model)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["inner.weight", "wide", "norm.running_mean"])
def test_nonfinite_weights(bad, where):
    def poisoned() -> nn.Module:
        model = net()
        with torch.no_grad():
            model.state_dict()[where].view(-1)[1] = bad
        return model

    for nonfinite in ("refuse", "skip", "absorb"):
        model = net()
        ema = EMA(model, 0.9, start="teacher", nonfinite=nonfinite, buffers="average", update_every=2)
        ema.update()
        ema.update()
        before = {name: value.clone() for name, value in ema.averages[0].items()}
        model.load_state_dict(poisoned().state_dict())
        if nonfinite == "refuse":
            with pytest.raises(FloatingPointError, match=where):
                ema.update()
        else:
            ema.update()
        if nonfinite == "absorb":
            assert not ema.averages[0][where].isfinite().all() and ema.step == 3
        else:
            assert_equal(ema.averages[0], before)
            assert (ema.step, ema.skipped) == (2, int(nonfinite == "skip"))
            model.load_state_dict(net().state_dict())
            ema.update()
            assert ema.step == 3


def test_large_finite_weights_are_finite():
    model = nn.Linear(40, 40)
    with torch.no_grad():
        model.weight.fill_(3e38)
    EMA(model, 0.9, start="teacher").update()


def test_a_nonfinite_anchor_is_refused():
    model, anchor = net(), net()
    ema = EMA(model, 0.9, anchors=[(anchor, 0.5)])
    with torch.no_grad():
        anchor.wide[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="wide"):
        ema.update()


def test_a_model_that_has_changed_is_refused():
    model = net()
    ema = EMA(model, 0.9)
    model.inner.weight = nn.Parameter(torch.zeros(5, 6))
    with pytest.raises(ValueError, match=r"'inner.weight' has shape \(5, 6\) and not \(6, 6\)"):
        ema.update()
    assert ema.step == 0
    model = net()
    ema = EMA(model, 0.9)
    model.mask = torch.zeros(3)
    with pytest.raises(ValueError, match="'mask' has dtype"):
        ema.update()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"schedule": 0.5}, "schedules"),
        ({"schedule": Uniform()}, "schedules"),
        ({"schedule": [0.9, 0.9]}, "schedules"),
        ({"start": "teacher"}, "start"),
        ({"buffers": "keep"}, "buffers"),
        ({"update_every": 3}, "update_every"),
        ({"dtype": torch.bfloat16}, "bfloat16"),
        ({"anchors": [(net(), 0.5)]}, "shares"),
    ],
)
def test_another_checkpoint_is_refused(options, name):
    other = EMA(net(), **{"schedule": 0.9, **options})
    wander(other.model, 1)
    other.update()
    ema = EMA(net(), 0.9)
    before = state(ema.module)
    with pytest.raises(ValueError, match=name):
        ema.load_state_dict(other.state_dict())
    assert_equal(state(ema.module), before)
    assert ema.step == 0


@pytest.mark.parametrize("count", [None, 2.5, -1, "3"])
def test_a_checkpoint_with_other_counts_is_refused(count):
    model = net()
    ema = EMA(model, 0.5, start="teacher")
    wander(model, 1)
    ema.update()
    before = {name: x.clone() for name, x in ema.averages[0].items()}
    stored = {**ema.state_dict(), "averages": [{n: x + 1 for n, x in before.items()}], "seen": count}
    with pytest.raises(ValueError, match="seen="):
        ema.load_state_dict(stored)
    assert_equal(ema.averages[0], before)


def test_a_checkpoint_of_other_tensors_is_refused():
    ema = EMA(net(), 0.9)
    before = state(ema.module)
    good = EMA(net(), 0.9).state_dict()
    wander(ema.model, 1)
    broken = {**good, "averages": [{**good["averages"][0], "wide": torch.zeros(3)}]}
    lacking = {**good, "averages": [{k: v for k, v in good["averages"][0].items() if k != "wide"}]}
    for wrong, message in ((broken, "'wide' has shape"), (lacking, "missing 'wide'"), ({"step": 1}, "keys")):
        with pytest.raises(ValueError, match=message):
            ema.load_state_dict(wrong)
    assert_equal(state(ema.module), before)


def test_attaching():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ema = EMA(model, 0.9)
    with pytest.raises(ValueError, match="when"):
        ema.attach(optimizer, "now")
    assert not ema.attached
    ema.attach(optimizer)
    with pytest.raises(RuntimeError, match="attached"):
        ema.attach(optimizer)


def test_snapshots():
    ema = EMA(net(), [Power(0.1), 0.9])
    with pytest.raises(RuntimeError, match="first update"):
        ema.snapshot()
    ema.update()
    with pytest.raises(TypeError, match="Power"):
        ema.snapshot(1)
    with pytest.raises(ValueError, match="snapshots"):
        reconstruct([], 0.1)
    with pytest.raises(ValueError, match="t_out"):
        reconstruct([ema.snapshot()], 0.1, t=5)
    with pytest.raises(ValueError, match="sigma_rel"):
        reconstruct([ema.snapshot()], 0.5)


def test_swapping_a_model_that_does_not_fit():
    ema = EMA(net(), 0.9)
    with pytest.raises(ValueError, match="missing"), ema.swapped(nn.Linear(2, 2)):
        pass
    ema.update()
