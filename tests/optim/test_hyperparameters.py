"""Every hyperparameter of every method changes the trajectory, or the docstring says when it does not."""

import functools
import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyak.optim
from polyak.declare import Choice, Hyper, Interval, Range
from polyak.optim import STEP

STEPS = 12
USUAL = {"weight_decay": 0.1, "aux_weight_decay": 0.1}
"""Decay is on, since much is about it."""

ORTHOGONAL = [name for name in polyak.optim.names() if hasattr(polyak.optim.get(name), "ns_dtype")]
# What else must be said for a hyperparameter to matter; the docstring is to name it beside the hyperparameter.
NEEDS: dict[tuple[str, str], dict[str, Any]] = {
    ("clion", "mask_floor"): {"mask_scale": "mean"},
    ("lionk", "e"): {"kappa": "huber", "e": 0.5},
    ("lionk", "p"): {"kappa": "lp", "p": 1.5},
    ("lionk", "k"): {"kappa": "topk", "k": 0.25},
    ("sgd", "dampening"): {"momentum": 0.9},
    ("sgd", "nesterov"): {"momentum": 0.9},
    ("sgdp", "nesterov"): {"momentum": 0.9},
    ("sgdp", "project_buffer"): {"momentum": 0.9},
    **{("random_scaling", name): {"base": "adamw"} for name in ("betas", "eps")},
    ("random_scaling", "mu"): {"base": "ogd"},
    ("mt_dao", "bias_correction"): {"variant": "adam"},
    ("spam", "seed"): {"density": 0.5},
    ("stable_spam", "eta_min"): {"total_T": 20},
    ("step", "n"): {"sparse": True},
    ("step", "m"): {"sparse": True},
    ("step", "sr_lambda"): {"sparse": True},
}
# Where it matters within a few steps of these weights.
HERE: dict[tuple[str, str], dict[str, Any]] = {
    **{(name, "conv_scale"): {"adjust_lr": "match_rms_adamw"} for name in ("muon", "cmuon")},
    **{(name, "lr"): {"lr": 1e-3} for name in ("alr_hb", "alr_mag", "alr_nag")},
    **{("m3", name): {"frequency": 2} for name in ("betas", "alpha", "frequency")},
    ("adabelief", "amsgrad"): {"rectify": False, "betas": (0.9, 0.5)},
    ("lars", "trust_clip"): {"lr": 0.1},
    ("mt_dao", "eps"): {"variant": "adam"},
    ("adaptive_braking", "clamp"): {"rho": 3.0},
    ("scale", "aux_weight_decay"): {"no_decay_1d": False},
    ("sgdp", "project_buffer"): {"delta": 3.0},
    **{("step", name): {"t_max": 3} for name in ("n", "m", "sr_lambda", "sparse", "freeze_all", "eps_mode")},
    ("spam", "DeltaT"): {"grad_accu_steps": 2},
    ("spam", "grad_accu_steps"): {"threshold": 0.05},
    ("spam", "threshold"): {"grad_accu_steps": 2},
    ("spam", "warmup_steps"): {"grad_accu_steps": 2, "DeltaT": 4},
    ("stable_spam", "reset_at"): {"DeltaT": 4},
    ("step", "t_min"): {"criterion": "relative"},
}
# Other values where the range does not tell one, or the next is too near.
VALUES: dict[tuple[str, str], Any] = {
    ("adaptive_braking", "eps"): 0.5,
    ("ademamix", "beta3_warmup"): 5,
    ("ademamix", "alpha_warmup"): 5,
    ("alphaadam", "alpha_max"): 1.0,
    ("clion", "mask_floor"): 1.0,
    ("lamb", "clamp_value"): 0.5,
    ("lionk", "kappa"): "l2",
    ("mt_dao", "betas"): ((0.9,), 0.99),
    ("mt_dao", "weight"): (0.5,),
    ("lionk", "e"): 0.01,
    ("lionk", "p"): 3.0,
    ("lionk", "k"): 0.5,
    ("fismo", "max_dim"): 5,
    ("gsm", "nonzero_ratio"): 0.5,
    **dict.fromkeys(((name, "ns_coefficients") for name in ORTHOGONAL), "svd"),
    **dict.fromkeys(((name, "ns_dtype") for name in ORTHOGONAL), torch.bfloat16),
    **dict.fromkeys(((name, "split_sizes") for name in ORTHOGONAL), (6, 6)),
    ("random_scaling", "scales"): [0.5 + t for t in range(STEPS)],
    ("scale", "norm_eps"): 1.0,
    ("spam", "DeltaT"): 4,
    ("spam", "grad_accu_steps"): 2,
    ("spam", "threshold"): 0.05,
    ("spam", "warmup_steps"): 2,
    ("stable_spam", "DeltaT"): 4,
    ("step", "n"): 1,
    ("step", "m"): 8,
    ("step", "criterion"): "relative",
    ("step", "t_min"): 9,
    ("step", "t_max"): 3,
    ("step", "total_steps"): 10,
}


LOSS = 3.0
"""The first loss, for methods that read it."""


class Net(nn.Module):
    """A weight of each role."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 8)
        self.conv = nn.Conv2d(4, 4, 2)
        self.hidden = nn.Linear(8, 6)
        self.wide = nn.Linear(4, 12, bias=False)
        self.head = nn.Linear(6, 4)
        self.one = nn.Parameter(torch.ones(1))
        self.long = nn.Parameter(torch.ones(64))
        self.double()


@functools.cache
def gradients() -> list[dict[str, Tensor]]:
    """Of a tendency and noise, one of them large."""
    source = torch.Generator().manual_seed(0)
    shapes = {name: p.shape for name, p in Net().named_parameters()}

    def draw() -> dict[str, Tensor]:
        return {name: torch.randn(s, generator=source, dtype=torch.float64) for name, s in shapes.items()}

    tendency = draw()
    found = [{name: 0.3 * tendency[name] + 0.5 * g for name, g in draw().items()} for _ in range(STEPS)]
    found[7] = {name: 30 * g for name, g in found[7].items()}
    return found


def trajectory(name: str, options: dict[str, Any]) -> list[Tensor]:
    """The weights after every step, with an lr that falls."""
    torch.manual_seed(0)
    model = Net()
    known = {h.name for h in polyak.optim.get(name).arguments} | {"no_decay_1d"}
    given = {key: value for key, value in {**USUAL, **options}.items() if key in known}
    optimizer: Any
    if given.pop("sparse", False):
        masked = [p.ndim == 2 and p.shape[1] == 8 for p in model.parameters()]
        groups = [[p for p, m in zip(model.parameters(), masked, strict=True) if m == on] for on in (True, False)]
        optimizer = STEP([{"params": groups[0], "sparse": True}, {"params": groups[1]}], execution="eager", **given)
    else:
        optimizer = polyak.optim.create(name, model, execution="eager", **given)
    went = []
    for t, found in enumerate(gradients()):
        for key, p in model.named_parameters():
            p.grad = found[key].clone()
        optimizer.step(loss=LOSS - 0.1 * t)
        for group in optimizer.param_groups:
            group["lr"] *= 0.97
        went.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return went


def others(name: str, hyper: Hyper, now: Any) -> list[Any]:
    """Other values that are allowed: all of a choice, of numbers one that is not far."""
    if (name, hyper.name) in VALUES:
        return [VALUES[name, hyper.name]]
    if isinstance(hyper.allowed, tuple):
        return [value for value in hyper.allowed if value != now]
    if isinstance(now, tuple):
        return [(*now[:i], 0.8 * b, *now[i + 1 :]) for i, b in enumerate(now)]
    if isinstance(hyper.search, Choice):
        return [value for value in hyper.search.values if value != now]
    if isinstance(hyper.search, Range):
        return [hyper.search.low if now == hyper.search.high else hyper.search.high]
    assert isinstance(hyper.allowed, Interval), f"say a value of {hyper.name} of {name} in VALUES"
    tried = (1e-3, 0.5, 3, 2) if isinstance(now, float) or now is None else (now + 1, now - 1)
    return [next(value for value in tried if value != now and value in hyper.allowed)]


CASES = [(name, hyper) for name in polyak.optim.names() for hyper in polyak.optim.get(name).arguments]


@pytest.mark.parametrize(("name", "hyper"), CASES, ids=[f"{name}-{h.name}" for name, h in CASES])
def test_it_changes_the_trajectory(name: str, hyper: Hyper) -> None:
    needed = {**HERE.get((name, hyper.name), {}), **NEEDS.get((name, hyper.name), {})}
    now = needed.get(hyper.name, USUAL.get(hyper.name, hyper.default))
    before = trajectory(name, needed)
    for value in others(name, hyper, now):
        after = trajectory(name, {**needed, hyper.name: value})
        assert all(bool(torch.isfinite(w).all()) for w in after)
        assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), f"{hyper.name}={value!r}"


@pytest.mark.parametrize(("name", "hyper"), NEEDS)
def test_the_docstring_says_when_it_does_not(name: str, hyper: str) -> None:
    """A sentence, or the line of an argument, that names both it and what it needs."""
    text = inspect.getdoc(polyak.optim.get(name)) or ""
    sentences = [re.sub(r"\s+", " ", s) for s in re.split(r"\.\s|\n *(?=\w+: )|\n\n", text)]
    needed = [key for key in NEEDS[name, hyper] if key != hyper]
    for key in needed:
        assert any(re.search(rf"\b{hyper}\b", s) and re.search(rf"\b{key}\b", s) for s in sentences), (
            f"{hyper} does nothing without {key}, and the docstring does not say so"
        )
