"""What is stored of averages: to go on otherwise, to ship, and by others than torch."""

import re

import pytest
import torch
from torch import nn

from polyak.local import MAN, CifarResNet, LocalNetwork
from polyak.teachers import EMA, Cosine, HardNegativeMoCo, MoCo
from tests.teachers.nets import net, wander


@pytest.mark.parametrize(("before", "after"), [(0.5, 0.75), (Cosine(10), Cosine(20)), (Cosine(10), 0.9)])
def test_another_schedule_goes_on_where_that_is_asked_for(before, after):
    model = net()
    ema = EMA(model, before, start="teacher")
    for t in range(3):
        wander(model, t)
        ema.update()
    other = EMA(model, after, start="teacher")
    with pytest.raises(ValueError, match=r"one with schedules .*; to go on .* schedule='mine'"):
        other.load_state_dict(ema.state_dict())
    assert other.step == 0
    other.load_state_dict(ema.state_dict(), schedule="mine")
    past = ema.averages[0]["wide"].clone()
    wander(model, 4)
    other.update()
    beta = other.schedules[0].beta(4, 4, 1)
    torch.testing.assert_close(other.averages[0]["wide"].data, beta * past.data + (1 - beta) * model.wide.data)
    with pytest.raises(ValueError, match=re.escape("[{'name'")):
        EMA(model, [0.5, 0.5], start="teacher").load_state_dict(ema.state_dict(), schedule="mine")
    with pytest.raises(ValueError, match="buffers"):
        EMA(model, after, start="teacher", buffers="average").load_state_dict(ema.state_dict(), schedule="mine")
    with pytest.raises(ValueError, match="schedule must be"):
        other.load_state_dict(ema.state_dict(), schedule="other")


class Tied(nn.Module):
    """Tied weights, a buffer that is not stored, and one that is."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("positions", torch.arange(5), persistent=False)


@pytest.mark.parametrize("teacher", ["copy", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_state_to_ship_is_that_of_a_model_with_the_averages_in_it(teacher, dtype, wrapped):
    model = Tied().to(dtype)
    given = torch.compile(model, backend="eager") if wrapped else model
    ema = EMA(given, 0.5, start="teacher", teacher=teacher)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    ema.update()
    found = ema.model_state_dict()
    assert found.keys() == model.state_dict().keys()
    assert {x.dtype for x in found.values()} == {dtype, torch.int64}
    fresh = Tied().to(dtype)
    fresh.load_state_dict(found)
    assert fresh.head.weight is fresh.embed.weight
    average = ema.averages[0]
    for name, p in fresh.named_parameters():
        assert torch.equal(p, average[name].to(dtype)), name
    assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    kept = found["embed.weight"].clone()
    with torch.no_grad():
        model.embed.weight.zero_()
    ema.update()
    assert torch.equal(found["embed.weight"], kept)


def stored_modules() -> list[nn.Module]:
    local = LocalNetwork(CifarResNet((1, 1, 1), 10, 3), 3, MAN(), example=torch.randn(2, 3, 32, 32))
    contrast = [MoCo(nn.Linear(8, 16), dim=16, queue_size=32), HardNegativeMoCo(nn.Linear(8, 16), dim=16)]
    return [*contrast, local]


def test_modules_store_nothing_but_tensors():
    """All that some formats take, such as safetensors; of one size, whatever they count."""
    moco, *others = stored_modules()
    for module in (moco, *others):
        assert all(isinstance(x, torch.Tensor) for x in module.state_dict().values())
    before = moco.state_dict()["_extra_state"]
    for _ in range(12):
        moco(torch.randn(4, 8), torch.randn(4, 8))
    after = moco.state_dict()["_extra_state"]
    assert after.shape == before.shape and not torch.equal(after, before)
    other = stored_modules()[0]
    other.load_state_dict(moco.state_dict())
    assert other.ema.step == other.ema.updates == 12


def test_accelerate_saves_and_loads_them(tmp_path):
    Accelerator = pytest.importorskip("accelerate").Accelerator
    for i, (module, fresh) in enumerate(zip(stored_modules(), stored_modules(), strict=True)):
        for name in ("saved", "loaded"):
            accelerator = Accelerator(cpu=True)
            accelerator._models.clear()
            one = accelerator.prepare(module if name == "saved" else fresh)
            if name == "saved":
                accelerator.save_state(str(tmp_path / str(i)))
            else:
                accelerator.load_state(str(tmp_path / str(i)))
        for key, value in module.state_dict().items():
            assert torch.equal(one.state_dict()[key], value), key


@pytest.mark.parametrize("teacher", ["copy", None])
def test_another_library_s_average_is_gone_on_with(teacher):
    """torch's own, after some steps; from then on both are the same."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = Tied()
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75))

    def step(t: int) -> None:
        wander(model.head, t)
        theirs.update_parameters(model)

    for t in range(3):
        step(t)
    ema = EMA(model, 0.75, teacher=teacher)
    ema.take_over(theirs.state_dict(), steps=3)  # its names begin with "module.", and it counts
    for t in range(3, 6):
        step(t)
        ema.update()
    assert (ema.step, ema.updates) == (6, 6)
    for name, p in theirs.module.named_parameters():
        torch.testing.assert_close(ema.averages[0][name].data, p.data)


def test_an_average_that_does_not_fit_is_not_taken_over():
    model = Tied()
    ema = EMA(model, 0.75, start="teacher")
    before = ema.averages[0]["embed.weight"].clone()
    state = {name: x + 1 for name, x in model.state_dict().items()}
    for wrong, message in (
        ({n: x for n, x in state.items() if n != "norm.weight"}, r"missing 'norm\.weight'"),
        ({**state, "norm.bias": torch.zeros(5)}, r"'norm\.bias' has shape"),
        ([state, state], "averages must be one for each of 1 schedules, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            ema.take_over(wrong, 3)
    with pytest.raises(ValueError, match="steps must be an int >= 1"):
        ema.take_over(state, 0)
    assert torch.equal(ema.averages[0]["embed.weight"], before) and ema.step == 0
