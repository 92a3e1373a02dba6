"""Traps that averages in a model's place run into: caches, shared memory, failures half way, updates that wait."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from polyak.teachers import EMA, Power, exchange, reconstruct


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
    plain, calls = exchange._exchange, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError
        return plain(*arguments)

    monkeypatch.setattr(exchange, "_exchange", failing)
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


def test_a_tensor_that_cannot_be_exchanged_leaves_all_as_they_were():
    """Norms are exchanged, half-precision weights lent, and what is expanded cannot be written to."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.proj = nn.LayerNorm(4), nn.Linear(4, 4).bfloat16()
            self.register_buffer("scale", torch.ones(1, dtype=torch.bfloat16).expand(4))

    model = Mixed()
    ema = EMA(model, 0.5, start="teacher")
    for p in model.parameters():
        nn.init.constant_(p, 3.0)
    ema.update()
    with ema.swapped():
        assert model.norm.weight[0].item() == 2.0 and model.norm.bias[0].item() == 1.5
        assert model.proj.weight.dtype == torch.bfloat16
        assert torch.equal(model.proj.bias, ema.averages[0]["proj.bias"].bfloat16())
    assert all(torch.equal(p, torch.full_like(p, 3.0)) for p in model.parameters())
    assert ema.module.norm.weight[0].item() == 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_taken_while_swapped_is_that_of_the_average(dtype):
    model = linear(1.0).to(dtype)
    ema = EMA(model, 0.5, start="teacher")
    nn.init.constant_(model.weight, 3.0)
    ema.update()
    with ema.swapped():
        taken = model.state_dict()
    assert taken["weight"][0, 0].item() == 2.0 and model.weight[0, 0].item() == 3.0


def test_cached_parametrizations_are_computed_anew():
    class Double(nn.Module):
        def forward(self, w):
            return 2 * w

    model = linear(1.0)
    parametrize.register_parametrization(model, "weight", Double())
    ema = EMA(model, 0.5, start="teacher")
    nn.init.constant_(model.parametrizations.weight.original, 3.0)
    ema.update()
    x = torch.ones(1, 4)
    with parametrize.cached(), torch.no_grad():
        online = model(x)
        with ema.swapped():
            averaged = model(x)
        after = model(x)
    assert (online.item(), averaged.item(), after.item()) == (24.0, 16.0, 24.0)


def test_a_buffer_that_a_swapped_forward_replaces_is_the_average_s():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.register_buffer("seen", torch.zeros(1))

        def forward(self):
            self.seen = self.seen + 1

    model = Counting()
    ema = EMA(model, 0.5, start="teacher")
    with ema.swapped():
        model()
    assert (model.seen.item(), ema.module.seen.item()) == (0.0, 1.0)


def test_what_is_made_in_inference_mode_goes_on_outside():
    model = linear(1.0)
    with torch.inference_mode():
        ema = EMA(model, 0.5, start="teacher")
        with ema.swapped():
            pass
    nn.init.constant_(model.weight, 3.0)
    ema.update()
    assert ema.averages[0]["weight"][0, 0].item() == 2.0


def test_an_update_before_the_forward_is_not_lost_where_no_forward_is_seen():
    """The module that a compiled one calls, or one that is trained in evaluation mode."""
    model = linear(1.0).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ema, plain = EMA(model, 0.5, start="teacher"), linear(1.0)
    ema.attach(optimizer, "before_forward")
    by_hand = EMA(plain, 0.5, start="teacher")

    def step():
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        by_hand.update()
        optimizer.step()
        plain.load_state_dict(model.state_dict())

    with pytest.warns(RuntimeWarning, match="no forward in training mode"):
        step()
    step()
    step()
    assert torch.equal(ema.averages[0]["weight"], by_hand.averages[0]["weight"]) and ema.updates == 3
