"""The recorded averages of torch, timm, diffusers, EDM2, ema-pytorch and lightly, each by its schedule."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from polyak.teachers import EMA, Constant, Cosine, HalfLife, Power, Ramp, Schedule, Uniform, Warmup
from tests.devices import DEVICES
from tests.teachers.nets import NAMES, arrays, manifest


class KarrasOfEmaPytorch(Schedule):
    """Its counter is one ahead, after a copy at the first update."""

    def __init__(self, sigma_rel: float) -> None:
        self.power = Power(sigma_rel)

    def beta(self, step: int, update: int, delta: int) -> float:
        return self.power.beta(step + 1, update + 1, delta)


def of(name: str) -> tuple[Schedule, dict[str, Any]]:
    """The schedule and options of a vector."""
    h = manifest(name)
    power = {"decay": h.get("decay"), "power": h.get("power", 2 / 3)}
    return {
        "ema-constant": lambda: (Constant(h["decay"]), {}),
        "ema-from-init": lambda: (Constant(h["m"]), {"start": "teacher"}),
        "ema-uniform": lambda: (Uniform(), {"start": "teacher"}),
        "ema-warmup-timm": lambda: (Warmup(h["decay"], h["warmup_power"], h["warmup_gamma"]), {"start": "teacher"}),
        "ema-diffusers-warmup": lambda: (Warmup(**power, inv_gamma=h["inv_gamma"]), {"start": "teacher"}),
        "ema-diffusers-default": lambda: (Ramp(h["decay"]), {"start": "teacher"}),
        "ema-karras": lambda: (Power(h["sigma_rel"]), {"start": "teacher"}),
        "ema-karras-lucidrains": lambda: (KarrasOfEmaPytorch(h["sigma_rel"]), {}),
        "ema-halflife-edm": lambda: (HalfLife(h["halflife"], h["rampup_ratio"], h["batch_size"]), {"start": "teacher"}),
        "ema-lucidrains": lambda: (
            Warmup(h["beta"], h["power"], update_after_step=h["update_after_step"]),
            {"update_every": h["update_every"]},
        ),
    }[name]()


TRAJECTORIES = (
    "ema-constant", "ema-from-init", "ema-uniform", "ema-warmup-timm", "ema-diffusers-warmup", "ema-diffusers-default",
    "ema-karras", "ema-karras-lucidrains", "ema-halflife-edm", "ema-lucidrains",
)  # fmt: skip


class Online(nn.Module):
    """The vectors' common model."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = arrays("inputs")
        for name in NAMES:
            setattr(self, name, nn.Parameter(self.inputs[f"p0/{name}"].clone()))

    @torch.no_grad()
    def step(self, t: int) -> None:
        for name in NAMES:
            getattr(self, name).sub_(0.1 * self.inputs[f"g/{name}"][t].to(getattr(self, name).device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TRAJECTORIES)
@pytest.mark.parametrize("resume_at", [None, 7])
def test_trajectory(name, resume_at, device):
    schedule, options = of(name)
    model, expected = Online().to(device), arrays(name)
    ema = EMA(model, schedule, **options)
    rtol = 1e-6 if name == "ema-lucidrains" else 1e-10  # it computes the weight in float32
    for t in range(25):
        if t == resume_at:
            state = ema.state_dict()
            ema = EMA(model, schedule, **options)
            ema.load_state_dict(state)
        model.step(t)
        ema.update()
        for tensor in NAMES:
            got = getattr(ema.module, tensor)
            torch.testing.assert_close(got.data.cpu(), expected[f"p/{tensor}"][t], rtol=rtol, atol=1e-2 * rtol)


@pytest.mark.parametrize("averaged", [False, True])
def test_buffers_of_torch(averaged):
    """torch's AveragedModel copies buffers, or with use_buffers averages them, integer ones too: here never."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=averaged)
    ours = EMA(model, 0.9, buffers="average" if averaged else "copy")
    for _ in range(5):
        model(torch.randn(8, 3, dtype=torch.float64) + 2)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        theirs.update_parameters(model)
        ours.update()
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(ours.module.state_dict()[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [0, 1])
def test_cosine_of_lightly(case):
    found = arrays("cosine-schedule-lightly")
    steps, start, end = found[f"in/{case}/args"].tolist()
    schedule = Cosine(int(steps), start, end, closed=True)
    betas = [schedule.beta(t, t, 1) for t in range(1, int(steps) + 1)]
    assert betas == pytest.approx(found[f"out/{case}/schedule"].tolist(), rel=1e-10)


@pytest.mark.parametrize("case", [0, 1])
def test_cosine_of_dino(case):
    found = arrays("cosine-momentum-schedule")
    base, final, epochs, per_epoch, warmup_epochs, _ = found[f"in/{case}/args"].tolist()
    warm, total = int(warmup_epochs * per_epoch), int(epochs * per_epoch)
    schedule = Cosine(total - warm, base, final)
    betas = [schedule.beta(t, t, 1) for t in range(1, total - warm + 1)]
    assert betas == pytest.approx(found[f"out/{case}/schedule"].tolist()[warm:], rel=1e-10)
