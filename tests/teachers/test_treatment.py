"""What becomes of which tensor: frozen, unfrozen, made in a forward, or counting others."""

import io
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from polyak.teachers import EMA
from tests.teachers.nets import assert_equal, state


def adapted(count: int = 3, width: int = 64) -> nn.Sequential:
    """A frozen base in half precision, and a head that is trained."""
    model = nn.Sequential(*[nn.Linear(width, width) for _ in range(count)], nn.Linear(width, 2)).bfloat16()
    model[:-1].requires_grad_(False)
    return model


def nbytes(model: nn.Module) -> int:
    return sum(p.nbytes for p in model.parameters() if p.requires_grad)


def test_frozen_weights_are_neither_held_nor_stored_without_a_module():
    model = adapted()
    ema = EMA(model, 0.5, teacher=None)
    ema.update()
    file = io.BytesIO()
    torch.save(ema.state_dict(), file)
    assert sum(x.nbytes for x in ema.averages[0].values()) == 2 * nbytes(model)
    assert file.tell() < 2 * nbytes(model) + 8192 < sum(p.nbytes for p in model.parameters())
    base = model[0].weight
    with ema.swapped():
        assert model[0].weight is base
        assert torch.equal(model[3].weight, ema.averages[0]["3.weight"].bfloat16())
    other = EMA(model, 0.5, teacher=None)
    other.load_state_dict(ema.state_dict())
    assert other.averages[0].keys() == ema.averages[0].keys() == {"3.weight", "3.bias"}
    assert ema.model_state_dict().keys() == model.state_dict().keys()


def test_frozen_weights_can_be_shared_with_an_averaged_model():
    model = adapted().float()
    ema = EMA(model, 0.5, start="teacher", frozen="share")
    assert ema.module[0].weight is model[0].weight and ema.module[3].weight is not model[3].weight
    before = model[3].weight.detach().clone()
    nn.init.zeros_(model[3].weight)
    ema.update()
    assert torch.equal(ema.module[3].weight, before / 2)
    model.load_state_dict({name: x.clone() for name, x in model.state_dict().items()}, assign=True)
    ema.update()
    assert ema.module[0].weight is model[0].weight
    copying = EMA(model, 0.5, start="teacher")
    copying.load_state_dict(ema.state_dict())
    for one, other in ((ema, copying), (copying, ema)):
        one.load_state_dict(other.state_dict())
        assert_equal(state(one.module), state(other.module))


@pytest.mark.parametrize("teacher", ["copy", None])
def test_a_shared_weight_that_is_unfrozen_is_averaged_from_then_on(teacher):
    model = adapted().float()
    ema = EMA(model, 0.5, start="teacher", teacher=teacher, frozen="share")
    ema.update()
    first = model[0].weight.detach().clone()
    model[0].requires_grad_(True)
    ema.update()
    with torch.no_grad():
        model[0].weight.zero_()
    ema.update()
    assert torch.equal(ema.averages[0]["0.weight"], first / 2)
    resumed = adapted().float()
    resumed.load_state_dict(model.state_dict())
    other = EMA(resumed, 0.5, start="teacher", teacher=teacher, frozen="share")
    other.load_state_dict(ema.state_dict())
    resumed[0].requires_grad_(True)
    for one in (ema, other):
        one.update()
    assert torch.equal(other.averages[0]["0.weight"], first / 4)
    assert torch.equal(ema.averages[0]["0.weight"], first / 4)
    if teacher:
        assert torch.equal(other.module[0].weight, first / 4) and not other.module[0].weight.requires_grad


@pytest.mark.parametrize("teacher", ["copy", None])
def test_what_was_averaged_once_is_averaged_while_it_is_frozen(teacher):
    """A GAN's other turn, or Q-networks during the policy's step; also across a checkpoint."""

    def run(frozen: bool) -> float:
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        ema = EMA(model, 0.9, start="teacher", teacher=teacher)
        for i in range(5):
            nn.init.constant_(model.weight, i + 1.0)
            model.requires_grad_(not frozen)
            ema.update()
            if i == 2:
                state = ema.state_dict()
                ema = EMA(model, 0.9, start="teacher", teacher=teacher)
                ema.load_state_dict(state)
            model.requires_grad_(True)
        return ema.averages[0]["weight"].item()

    expected = sum(0.9 ** (4 - i) * 0.1 * (i + 1) for i in range(5))
    assert run(False) == pytest.approx(expected, rel=1e-5)
    assert run(True) == run(False)


class Causal(nn.Module):
    """A mask that the first forward makes, and that grows with the sequence; a table that is assigned anew."""

    def __init__(self, persistent: bool = False) -> None:
        super().__init__()
        self.proj, self.persistent = nn.Linear(4, 4), persistent
        self.register_buffer("mask", None, persistent=persistent)
        self.register_buffer("cos", torch.ones(2), persistent=persistent)

    def forward(self, x):
        n = x.shape[1]
        if self.mask is None or len(self.mask) < n:
            self.register_buffer("mask", torch.ones(n, n).tril(), persistent=self.persistent)
            self.cos = torch.arange(n).float()
        return self.mask[:n, :n] @ self.proj(x)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("teacher", ["copy", None])
@pytest.mark.parametrize("buffers", ["copy", "keep"])
def test_buffers_that_a_forward_makes_are_taken_over(persistent, teacher, buffers):
    model = Causal(persistent)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ema = EMA(model, 0.9, teacher=teacher, buffers=buffers).attach(optimizer)
    for length in (4, 8, 2):
        optimizer.zero_grad()
        model(torch.randn(2, length, 4)).square().mean().backward()
        optimizer.step()
        if buffers == "copy":
            assert torch.equal(ema.averages[0]["mask"], model.mask)
            assert torch.equal(ema.averages[0]["cos"], model.cos)
    assert ema.updates == 3
    x = torch.randn(1, 16, 4)
    with ema.swapped(), torch.no_grad():
        swapped = model(x)
    if teacher:
        torch.testing.assert_close(ema(x), swapped)
    model(x)
    again = EMA(Causal(persistent), 0.9, teacher=teacher, buffers=buffers)
    if not persistent:
        again.load_state_dict(ema.state_dict())
    again.update()


def test_an_averaged_buffer_of_another_shape_is_refused():
    model = Causal(persistent=True)
    ema = EMA(model, 0.5, buffers="average")
    model.cos = torch.ones(3)
    with pytest.raises(ValueError, match=r"'cos' has shape \(3,\) and not \(2,\)"):
        ema.update()


class Statistics(nn.Module):
    """Assigns its buffers anew in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("other", torch.zeros(2))

    def forward(self, x):
        self.mean = 0.5 * self.mean + 0.5 * x
        self.other = self.other + 1


@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("teacher", ["copy", None])
def test_buffers_that_are_assigned_anew_make_no_new_plan(buffers, teacher, monkeypatch):
    model = Statistics()
    ema = EMA(model, [0.5, 0.75], start="teacher", buffers=buffers, teacher=teacher)
    plans, mean = set(), [torch.zeros(2), torch.zeros(2)]
    for t in range(6):
        model(torch.full((2,), float(t)))
        if teacher and t == 4:
            ema.modules[1](torch.zeros(2))
            mean[1] = ema.modules[1].mean.clone()
        ema.update()
        if t > 1:
            plans.add(id(ema._known))
        for average, beta, i in zip(ema.averages, (0.5, 0.75), range(2), strict=True):
            mean[i] = model.mean if buffers == "copy" else beta * mean[i] + (1 - beta) * model.mean
            torch.testing.assert_close(average["mean"], mean[i])
    assert len(plans) <= (2 if teacher and buffers == "average" else 1)
    model.mean = torch.zeros(2, dtype=torch.float64)
    ema.update()
    model.mean = torch.full((2,), torch.nan)
    with pytest.raises(FloatingPointError, match="mean") if buffers == "average" else nullcontext():
        ema.update()


def test_complex_weights_need_no_new_plan():
    model = nn.ParameterList([torch.randn(3, dtype=torch.complex64)])
    ema = EMA(model, 0.5, start="teacher")
    ema.update()
    known = ema._known
    for swap in (False, True):
        before = ema.averages[0]["0"].detach().clone()
        with torch.no_grad():
            model[0].mul_(1j)
        ema.update()
        torch.testing.assert_close(ema.averages[0]["0"].detach(), (before + model[0].detach()) / 2)
        assert ema._known is known
        if not swap:
            with ema.swapped():
                pass


def test_counts_stay_with_the_statistics_that_they_count():
    """A cumulative average of a teacher's own, whose weight is one over the count."""
    model = nn.BatchNorm1d(1, momentum=None)
    ema = EMA(model, 0.5, start="teacher", buffers="keep")
    ema.module.train()
    for t in range(3):
        for _ in range(5):
            model(torch.randn(4, 1))
        ema.module(torch.tensor([[2.0 * t], [2.0 * t + 2]]))
        ema.update()
    assert ema.module.num_batches_tracked.item() == 3
    assert ema.module.running_mean.item() == pytest.approx(3.0)


def test_recurrent_layers_see_the_tensors_that_are_put_in():
    model = nn.LSTM(3, 3)
    model.weight_ih_l0.requires_grad_(False)
    ema = EMA(model, 0.5, start="teacher", frozen="share")
    model.weight_ih_l0.requires_grad_(True)
    ema.update()
    before = ema.module.weight_ih_l0.detach().clone()
    with torch.no_grad():
        model.weight_ih_l0.zero_()
    ema.update()
    assert torch.equal(ema.module.weight_ih_l0, before / 2)
    x, plain = torch.randn(2, 1, 3), nn.LSTM(3, 3)
    plain.load_state_dict(ema.module.state_dict())
    assert torch.equal(ema(x)[0], plain(x)[0])
