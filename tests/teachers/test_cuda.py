"""Averages and MoCo on a GPU: what the CPU computes, and nothing waits for the device where nothing has to."""

import pytest
import torch
from torch import nn

from polyak.teachers import EMA
from tests.teachers.nets import assert_equal, net, wander
from tests.teachers.test_moco import tiny, views

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("execution", ["auto", "batched"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_averages_are_those_of_the_cpu(execution, dtype):
    here, there = net(dtype), net(dtype).cuda()
    there.load_state_dict(here.state_dict())
    one, other = (EMA(m, [0.9, 0.5], start="teacher", execution=execution) for m in (here, there))
    for t in range(4):
        wander(here, t)
        there.load_state_dict(here.state_dict())
        one.update()
        other.update()
    for a, b in zip(one.averages, other.averages, strict=True):
        for name, value in a.items():
            torch.testing.assert_close(b[name].data.cpu(), value.data, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("execution", ["auto", "batched"])
def test_bfloat16_averages_move_in_the_mean(execution):
    model = nn.Linear(4096, 64, bias=False, dtype=torch.bfloat16, device="cuda")
    nn.init.ones_(model.weight)
    ema = EMA(model, 0.999, start="teacher", dtype=torch.bfloat16, execution=execution)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(20):
        ema.update()
    assert ema.module.weight.double().mean().item() == pytest.approx(2 - 0.999**20, abs=1e-3)


def test_an_update_waits_for_nothing():
    model = net(torch.float32).cuda()
    ema = EMA(model, 0.9, nonfinite="absorb")
    for t in range(3):
        wander(model, t)
        ema.update()
    wander(model, 3)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ema.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("amp", [torch.float16, torch.bfloat16])
def test_moco_under_autocast(amp):
    moco = tiny().float().cuda()
    x, y = (v.float().cuda() for v in views())
    optimizer = torch.optim.SGD(moco.encoder.parameters(), 0.1)
    for _ in range(3):
        with torch.autocast("cuda", amp):
            loss = moco(x, y).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.isfinite() and moco.queue.read().isfinite().all()


def test_resumed_on_a_gpu_is_uninterrupted():
    model = net(torch.float32).cuda()
    ema = EMA(model, [0.9, 0.5], start="teacher")
    wander(model, 0)
    ema.update()
    again = EMA(model, [0.9, 0.5], start="teacher")
    again.load_state_dict(ema.state_dict())
    for t in (1, 2):
        wander(model, t)
        ema.update()
        again.update()
    for a, b in zip(ema.averages, again.averages, strict=True):
        assert_equal({k: v.data for k, v in a.items()}, {k: v.data for k, v in b.items()})
