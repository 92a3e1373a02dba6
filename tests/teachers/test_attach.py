"""Updates on real optimizer steps only, before a forward or after a step, and swapping for evaluation."""

import copy
import gc
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyak.optim
from polyak.teachers import EMA, Constant, Warmup
from tests.teachers.nets import Net, assert_equal, batch, net, state, train


def by_hand(steps: int, **options: Any) -> dict[str, Tensor]:
    """The average after a training with an update after every step."""
    model = net()
    optimizer, ema = torch.optim.SGD(model.parameters(), 0.1), EMA(model, Warmup(0.9), **options)
    for step in range(steps):
        train(model, optimizer, step, step + 1)
        ema.update()
    return {name: value.clone() for name, value in ema.averages[0].items()}


@pytest.mark.parametrize("make", [torch.optim.SGD, polyak.optim.SGD])
def test_after_each_step(make):
    model = net()
    optimizer = make(model.parameters(), lr=0.1)
    ema = EMA(model, Warmup(0.9)).attach(optimizer)
    train(model, optimizer, 0, 5)
    assert ema.step == 5
    expected = by_hand(5)
    for name, value in ema.averages[0].items():
        torch.testing.assert_close(value.data, expected[name].data, rtol=1e-12, atol=1e-12)
    ema.detach()
    train(model, optimizer, 5, 6)
    assert ema.step == 5 and not ema.attached


def test_before_forward_shows_every_batch_the_same_teacher():
    """The teacher that a batch sees is the one that updates after steps would show it, after a no-op at first."""
    seen: dict[str, list[Tensor]] = {}
    for when in ("after_step", "before_forward"):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        ema = EMA(model, 0.9, start="teacher").attach(optimizer, when)
        seen[when] = []
        for step in range(4):
            optimizer.zero_grad()
            out = model(batch(step))
            seen[when].append(ema.module.inner.weight.detach().clone())
            out.square().mean().backward()
            optimizer.step()
            model.eval()(batch(step))  # no update by an evaluation
            model.train()
        assert ema.step == 4
    for after, before in zip(seen["after_step"], seen["before_forward"], strict=True):
        assert torch.equal(after, before)


def test_accumulated_gradients_count_once():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    emas = [EMA(model, 0.9).attach(optimizer, when) for when in ("after_step", "before_forward")]
    for _ in range(3):
        optimizer.zero_grad()
        for micro in range(4):
            model(batch(micro)).square().mean().backward()
        optimizer.step()
    assert [ema.step for ema in emas] == [3, 3]


class Unscaling(torch.optim.SGD):
    """An optimizer that a GradScaler calls even for a step to be skipped, as it does torch's fused ones."""

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if not bool(self.found_inf):
            for p in self.param_groups[0]["params"]:
                if p.grad is not None:
                    p.sub_(p.grad / self.grad_scale, alpha=0.1)


@pytest.mark.parametrize("make", [torch.optim.SGD, Unscaling])
@pytest.mark.parametrize("when", ["after_step", "before_forward"])
def test_a_step_that_the_scaler_skips_moves_nothing(make, when):
    model = net(torch.float32)
    optimizer = make(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    ema = EMA(model, 0.9).attach(optimizer, when)
    for step in range(5):
        optimizer.zero_grad()
        loss = model(batch(step, torch.float32)).square().mean()
        before, count = state(model), ema.step
        scaler.scale(loss * torch.inf if step == 2 else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if step == 2:
            assert ema.step == count and torch.equal(state(model)["wide"], before["wide"])
    model(batch(5, torch.float32))
    assert ema.step == (4 if when == "after_step" else 5) and scaler.get_scale() == 2.0


@pytest.mark.parametrize("when", ["after_step", "before_forward"])
def test_resumed_between_step_and_forward(when):
    def made() -> tuple[Net, torch.optim.Optimizer, EMA]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        return model, optimizer, EMA(model, Warmup(0.95), start="teacher").attach(optimizer, when)

    model, optimizer, straight = made()
    train(model, optimizer, 0, 3)
    file = io.BytesIO()
    torch.save([x.state_dict() for x in (model, optimizer, straight)], file)
    train(model, optimizer, 3, 6)
    model, optimizer, resumed = made()
    file.seek(0)
    for x, stored in zip((model, optimizer, resumed), torch.load(file, weights_only=True), strict=True):
        x.load_state_dict(stored)
    train(model, optimizer, 3, 6)
    assert resumed.step == straight.step
    assert_equal(resumed.averages[0], straight.averages[0])


class Wrapped:
    """As accelerate wraps an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def test_a_wrapped_optimizer_is_looked_through():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ema = EMA(model, 0.9).attach(Wrapped(optimizer))
    train(model, optimizer, 0, 2)
    assert ema.step == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_swapping_and_back_over_an_exception(dtype):
    model = net(dtype)
    ema = EMA(model, 0.5, start="teacher")
    with torch.no_grad():
        model.wide.add_(1)
    ema.update()
    before, pointers = state(model), [p.data_ptr() for p in model.parameters()]
    average = {name: value.clone() for name, value in ema.averages[0].items()}
    with pytest.raises(KeyError), ema.swapped() as swapped:
        assert swapped is model
        assert all(torch.equal(value, average[n].to(value.dtype)) for n, value in state(model).items() if n in average)
        raise KeyError
    assert_equal(state(model), before)
    assert_equal(ema.averages[0], average)
    assert [p.data_ptr() for p in model.parameters()] == pointers


def test_swapping_moves_no_memory():
    model = net()
    ema = EMA(model, [0.5, 0.9])
    pointer = ema.averages[1]["wide"].data_ptr()
    with ema.swapped(which=1):
        assert model.wide.data_ptr() == pointer


def test_swapping_into_another_model():
    model, other = net(), net()
    ema = EMA(model, 0.5)
    with torch.no_grad():
        model.wide.add_(1)
    ema.update()
    with ema.swapped(other):
        assert torch.equal(other.wide, model.wide)
    assert torch.equal(other.wide, net().wide)


def test_swapped_twice_or_updated_meanwhile_is_an_error():
    model = net()
    ema = EMA(model, 0.5)
    stored = ema.state_dict()
    with ema.swapped():
        with pytest.raises(RuntimeError, match="swapped"), ema.swapped():
            pass
        with pytest.raises(RuntimeError, match="swapped"):
            ema.update()
        with pytest.raises(RuntimeError, match="swapped"):
            ema.load_state_dict(stored)
        with pytest.raises(RuntimeError, match="swapped"):
            ema.state_dict()
    ema.update()
    assert ema.step == 1


def test_training_goes_on_after_a_swap_as_without():
    trained = []
    for swapping in (False, True):
        model = net()
        optimizer = polyak.optim.AdamW(model.parameters(), lr=0.01)
        ema = EMA(model, 0.9).attach(optimizer)
        train(model, optimizer, 0, 3)
        if swapping:
            with ema.swapped():
                model.eval()(batch(0))
            model.train()
        train(model, optimizer, 3, 6)
        trained.append((state(model), {n: v.clone() for n, v in ema.averages[0].items()}))
    assert_equal(trained[1][0], trained[0][0])
    assert_equal(trained[1][1], trained[0][1])


def test_wrappers_change_no_name():
    model = net()
    compiled = torch.compile(model, backend="eager")
    ema = EMA(compiled, Constant(0.9))
    assert ema.averages[0].keys() == EMA(model, 0.9).averages[0].keys()
    assert isinstance(ema.module, Net)
    with torch.no_grad():
        model.wide.add_(1)
    ema.update()
    assert torch.equal(ema.module.wide, model.wide)


@pytest.mark.parametrize("when", ["after_step", "before_forward"])
def test_a_compiled_model_trains_and_averages(when):
    model = net()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ema = EMA(compiled, Warmup(0.9)).attach(optimizer, when)
    train(compiled, optimizer, 0, 5)
    if when == "before_forward":
        compiled(batch(0))
        assert ema.step == 6
        return
    expected = by_hand(5)
    for name, value in ema.averages[0].items():
        torch.testing.assert_close(value.data, expected[name].data, rtol=1e-9, atol=1e-12)


def test_names_of_a_wrapped_model_load_into_a_plain_one():
    plain = net()
    ema = EMA(nn.DataParallel(plain), 0.9)
    other = EMA(net(), 0.9)
    with torch.no_grad():
        plain.wide.add_(1)
    ema.update()
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.module.wide, plain.wide)


@pytest.mark.parametrize("make", [torch.optim.SGD, polyak.optim.SGD])
@pytest.mark.parametrize("when", ["after_step", "before_forward"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_model_and_optimizer_leave_the_average_alone(make, when, copied):
    model = net()
    optimizer = make(model.parameters(), lr=0.1)
    ema = EMA(model, 0.9, start="teacher").attach(optimizer, when)
    train(model, optimizer, 0, 2)
    before, counts = {n: x.clone() for n, x in ema.averages[0].items()}, (ema.step, ema.pending)
    gc.collect()
    averages = sum(type(x) is EMA for x in gc.get_objects())
    other_model, other_optimizer = copied(model), copied(optimizer)
    train(other_model, make(other_model.parameters(), lr=0.1), 2, 4)
    for group in other_optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    other_optimizer.step()
    assert sum(type(x) is EMA for x in gc.get_objects()) == averages
    assert (ema.step, ema.pending) == counts
    assert_equal(ema.averages[0], before)
    train(model, optimizer, 2, 4)
    assert ema.step == counts[0] + 2


def test_a_copy_of_an_attached_average_stands_by_itself():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ema = EMA(model, 0.9, start="teacher").attach(optimizer, "before_forward")
    train(model, optimizer, 0, 3)
    other = copy.deepcopy(ema)
    assert not other.attached and ema.attached and other.model is not model
    kept = {n: x.clone() for n, x in ema.averages[0].items()}
    other.update()
    other.attach(torch.optim.SGD(other.model.parameters(), 0.1))
    assert_equal(ema.averages[0], kept)
    ema.update()
    assert_equal(other.averages[0], ema.averages[0])


def test_another_average_of_an_attached_model_does_not_move_the_first():
    model = net()
    ema = EMA(model, 0.9).attach(torch.optim.SGD(model.parameters(), 0.1), "before_forward")
    other = EMA(model, 0.5)
    other.module.train()(batch(0))
    assert ema.step == 0
