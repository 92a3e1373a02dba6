"""Traps that averages in a model's place run into: caches, shared memory, failures half way, updates that wait."""

import pytest
import torch
from torch import nn

from polyak.teachers import EMA, Power, reconstruct
from polyak.teachers import replica as replicas


def linear(value: float) -> nn.Linear:
    model = nn.Linear(4, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_autocast_does_not_go_on_with_the_casts_of_exchanged_weights():
    model = linear(1.0)
    ema = EMA(model, 0.5, start="teacher")
    nn.init.constant_(model.weight, 3.0)
    x = torch.ones(1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        online = model(x)
        with ema.swapped():
            averaged = model(x)
        after = model(x)
    assert (online.item(), averaged.item(), after.item()) == (12.0, 4.0, 12.0)


def test_a_failure_while_swapping_leaves_both_as_they_were(monkeypatch):
    model = nn.Sequential(linear(1.0), linear(1.0), linear(1.0))
    ema = EMA(model, 0.5, start="teacher")
    for p in model.parameters():
        nn.init.constant_(p, 3.0)
    plain, calls = replicas._exchange, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError
        return plain(*arguments)

    monkeypatch.setattr(replicas, "_exchange", failing)
    with pytest.raises(MemoryError), ema.swapped():
        pass
    assert [p[0, 0].item() for p in model.parameters()] == [3.0] * 3
    assert [p[0, 0].item() for p in ema.module.parameters()] == [1.0] * 3


def test_a_teacher_must_have_tensors_of_its_own():
    model = linear(1.0)
    with pytest.raises(ValueError, match="shares"):
        EMA(model, 0.5, teacher=model)
    assert model.weight.requires_grad
    teacher = linear(2.0)
    with pytest.raises(ValueError, match="shares"):
        EMA(model, [0.5, 0.9], teacher=[teacher, teacher])


def test_post_hoc_sums_leave_copied_buffers_alone():
    """Weights of both signs would make a variance negative."""
    model = nn.BatchNorm1d(2)
    ema = EMA(model, [Power(sigma_rel=0.05), Power(sigma_rel=0.10)])
    snapshots = []
    for t in range(1, 401):
        model.running_var.fill_(100.0 if t < 350 else 0.1)
        ema.update()
        if t % 40 == 0:
            snapshots += [ema.snapshot(0), ema.snapshot(1)]
    found = reconstruct(snapshots, 0.07)
    assert torch.equal(found["running_var"], model.running_var)
    torch.testing.assert_close(found["weight"], model.weight.detach())


@pytest.mark.parametrize("load_first", [True, False])
def test_an_update_that_waits_for_the_next_forward_survives_a_checkpoint(load_first):
    def make():
        model = linear(1.0)
        return model, EMA(model, 0.5, start="teacher"), torch.optim.SGD(model.parameters(), lr=1.0)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()

    model, ema, optimizer = make()
    ema.attach(optimizer, "before_forward")
    step(model, optimizer)
    state = ema.state_dict()
    resumed, other, another = make()
    resumed.load_state_dict(model.state_dict())
    if load_first:
        other.load_state_dict(state)
    other.attach(another, "before_forward")
    if not load_first:
        other.load_state_dict(state)
    for m in (model, resumed):
        m(torch.ones(1, 4))
    assert other.updates == ema.updates == 2
    assert torch.equal(other.module.weight, ema.module.weight)


def test_a_step_inside_of_swapped_is_refused():
    """It would train the averages, and no update could follow it."""
    model = linear(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ema = EMA(model, 0.5, start="teacher").attach(optimizer)
    model(torch.ones(1, 4)).sum().backward()
    with pytest.raises(RuntimeError, match="inside of swapped"), ema.swapped():
        optimizer.step()
    assert ema.updates == 0


def test_a_forward_inside_of_swapped_does_not_lose_the_update():
    model = linear(1.0)
    ema = EMA(model, 0.5, start="teacher")
    ema.attach(torch.optim.SGD(model.parameters(), lr=1.0), "before_forward")
    with ema.swapped():
        model(torch.ones(1, 4))
    assert ema.updates == 0
    model(torch.ones(1, 4))
    assert ema.updates == 1
