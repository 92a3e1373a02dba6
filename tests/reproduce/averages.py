"""Averages of weights: their trajectories by schedule, post-hoc weights, cosine schedules, and lightly's bank."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from polyak.memory import gamma_of_sigma_rel, posthoc_weights, sigma_rel_of_gamma
from polyak.teachers import EMA, Constant, Cosine, HalfLife, Power, Queue, Ramp, Schedule, Uniform, Warmup, info_nce
from tests.reproduce.vector import Unknown, Vector, array

Followed = tuple[Schedule, dict[str, Any]]
TEACHER = {"start": "teacher"}


class KarrasOfEmaPytorch(Schedule):
    """Its counter is one ahead, after a copy at the first update."""

    def __init__(self, sigma_rel: float) -> None:
        self.power = Power(sigma_rel)

    def beta(self, step: int, update: int, delta: int) -> float:
        return self.power.beta(step + 1, update + 1, delta)


@dataclass(frozen=True)
class WarmupInFloat32(Warmup):
    """As ema-pytorch computes it, in float32."""

    def beta(self, step: int, update: int, delta: int) -> float:
        s = torch.tensor(float(step - self.update_after_step - 1)).clamp(min=0.0)
        value = 1 - (1 + s / self.inv_gamma) ** -self.power
        return 0.0 if s == 0 else value.clamp(min=self.min_decay, max=self.decay).item()


def _constant(v: Vector) -> Followed:
    v.read_all("decay")
    return Constant(v.option("decay")), {}


def _from_start(v: Vector) -> Followed:
    v.read_all("m")
    return Constant(v.option("m")), TEACHER


def _uniform(v: Vector) -> Followed:
    v.read_all()
    return Uniform(), {}


def _timm(v: Vector) -> Followed:
    v.read_all("decay", "min_decay", "update_after_step", "use_warmup", "warmup_gamma", "warmup_power")
    if not v.option("use_warmup", False):
        return Constant(v.option("decay")), TEACHER
    later = v.option("update_after_step", 0), v.option("min_decay", 0.0)
    return Warmup(v.option("decay"), v.option("warmup_power", 2 / 3), v.option("warmup_gamma", 1.0), *later), TEACHER


def _diffusers(v: Vector) -> Followed:
    v.read_all("decay", "inv_gamma", "min_decay", "power", "update_after_step", "use_ema_warmup")
    decay, later = v.option("decay"), (v.option("update_after_step", 0), v.option("min_decay", 0.0))
    if not v.option("use_ema_warmup", False):
        return Ramp(decay, *later), TEACHER
    return Warmup(decay, v.option("power", 2 / 3), v.option("inv_gamma", 1.0), *later), TEACHER


def _edm(v: Vector) -> Followed:
    v.read_all("batch_size", "halflife", "rampup_ratio")
    return HalfLife(v.option("halflife"), v.option("rampup_ratio")), TEACHER


def _edm2(v: Vector) -> Followed:
    v.read_all("batch_size", "sigma_rel")
    return Power(v.option("sigma_rel")), TEACHER


def _karras_of_ema_pytorch(v: Vector) -> Followed:
    v.read_all("sigma_rel")
    return KarrasOfEmaPytorch(v.option("sigma_rel")), {}


def _ema_pytorch(v: Vector) -> Followed:
    v.read_all("beta", "inv_gamma", "min_value", "power", "update_after_step", "update_every")
    later = v.option("update_after_step", 100), v.option("min_value", 0.0)
    schedule = WarmupInFloat32(v.option("beta"), v.option("power", 2 / 3), v.option("inv_gamma", 1.0), *later)
    return schedule, {"update_every": v.option("update_every", 10)}


SCHEDULES: dict[str, Callable[[Vector], Followed]] = {
    "torch AveragedModel + EMA": _constant,
    "teacher update, initial copy counts (MoCo/BYOL/DINO/ALBEF)": _from_start,
    "uniform (Polyak-Ruppert / SWA) average": _uniform,
    "power warmup": _timm,
    "diffusers default": _diffusers,
    "diffusers warmup": _diffusers,
    "half-life EMA with ramp-up (EDM)": _edm,
    "power-function EMA (EDM2, official)": _edm2,
    "power-function EMA": _karras_of_ema_pytorch,
    "ema-pytorch EMA": _ema_pytorch,
}


class Online(nn.Module):
    """The online model: its tensors go down the recorded gradients."""

    def __init__(self, vector: Vector, device: str) -> None:
        super().__init__()
        self.lr = float(vector.said(r"theta_t - ([\d.e-]+)\*grad_t")[0])
        self.tensors = nn.ParameterList(vector.input(f"p0/{name}", device) for name in vector.tensors)
        self.gradients = [vector.input(f"g/{name}", device) for name in vector.tensors]

    @torch.no_grad()
    def step(self, t: int) -> None:
        for tensor, gradient in zip(self.tensors, self.gradients, strict=True):
            tensor.sub_(self.lr * gradient[t])


def trajectory(vector: Vector, device: str, resume_at: int | None = None) -> dict[str, np.ndarray]:
    """The averages after each update; saved and loaded into another average before the update ``resume_at``."""
    schedule, options = SCHEDULES[vector.variant](vector)
    model = Online(vector, device)
    ema, went = EMA(model, schedule, **options), []
    for t in range(vector.length):
        if t == resume_at:
            state = ema.state_dict()
            ema = EMA(model, schedule, **options)
            ema.load_state_dict(state)
        model.step(t)
        ema.update(vector.option("batch_size", 1))
        went.append([tensor.detach().clone() for tensor in ema.module.tensors])
    stacked = [array(torch.stack(steps)) for steps in zip(*went, strict=True)]
    return {f"p/{name}": values for name, values in zip(vector.tensors, stacked, strict=True)}


def post_hoc(vector: Vector) -> dict[str, np.ndarray]:
    """Weights of stored averages in those of other widths, and widths as exponents and back."""
    vector.read_all()
    found: dict[str, np.ndarray] = {}
    for case in vector.steps(r"in/(\d+)/t"):
        query = [vector.input(f"in/{case}/{name}") for name in ("t", "sigma_rel", "t_out", "sigma_rel_out")]
        gammas = [gamma_of_sigma_rel(width) for width in query[3].tolist()]
        out = {
            "coefficients": posthoc_weights(*query),
            "unnormalised": posthoc_weights(*query, normalise=False),
            "gamma": gammas,
            "sigma_back": [sigma_rel_of_gamma(gamma) for gamma in gammas],
        }
        found |= {f"out/{case}/{name}": array(value) for name, value in out.items()}
    return found


def _lightly_cosine(steps: float, start: float, end: float) -> list[float]:
    schedule = Cosine(int(steps), start, end, closed=True)
    return [schedule.beta(t, t, 1) for t in range(1, int(steps) + 1)]


def _dino_cosine(
    base: float, final: float, epochs: float, per_epoch: float, warmup_epochs: float, start: float
) -> list[float]:
    """A warm-up in a line, and then ours."""
    warm, total = int(warmup_epochs * per_epoch), int(epochs * per_epoch)
    schedule = Cosine(total - warm, base, final)
    rising = np.linspace(start, base, warm).tolist() if warmup_epochs > 0 else []
    return rising + [schedule.beta(t, t, 1) for t in range(1, total - warm + 1)]


def cosine(values: Callable[..., list[float]], vector: Vector) -> dict[str, np.ndarray]:
    """A schedule, from its arguments."""
    vector.read_all()
    cases = vector.steps(r"in/(\d+)/args")
    return {f"out/{c}/schedule": array(values(*vector.input(f"in/{c}/args").tolist())) for c in cases}


def bank(vector: Vector, device: str) -> dict[str, np.ndarray]:
    """Losses against lightly's memory bank, which drops what does not fit."""
    vector.read_all("K", "T", "batch", "dim")
    start = vector.input("in/bank", device)
    queue = Queue(vector.option("K"), vector.option("dim"), truncate=True).to(start)
    queue.key.copy_(start)
    found: dict[str, np.ndarray] = {}
    for t in vector.steps(r"in/(\d+)/query"):
        query = vector.input(f"in/{t}/query", device).requires_grad_()
        key = normalize(vector.input(f"in/{t}/key", device), dim=1)
        loss = info_nce(normalize(query, dim=1), key, queue.read(), vector.option("T"))
        (gradient,) = torch.autograd.grad(loss, query)
        queue.enqueue(key)
        out = {"loss": loss, "grad_query": gradient, "bank": queue.read(), "ptr": [queue.pointer]}
        found |= {f"out/{t}/{name}": array(value) for name, value in out.items()}
    return found


def averages(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """What a vector of this family holds, by its variant."""
    if vector.variant in SCHEDULES:
        return trajectory(vector, device)
    if vector.variant == "post-hoc EMA reconstruction":
        return post_hoc(vector)
    if vector.variant == "cosine schedule reaching its end":
        return cosine(_lightly_cosine, vector)
    if vector.variant == "DINO cosine schedule":
        return cosine(_dino_cosine, vector)
    if vector.variant.startswith("memory bank"):
        return bank(vector, device)
    raise Unknown(f"nothing recomputes the variant {vector.variant!r} of {vector.rule!r}")


RULES = {"ema-machinery": averages}
