"""The small proofs of methods for gradients that spike, come late or must cost little.

As :mod:`proofs`: one line a figure, written as JSON; the outcome is recorded whatever it is.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean
from typing import Any

import proofs
import torch
from torch import nn

import polyak.optim
from polyak.optim.drivers import Delayed
from polyak.optim.vocabulary.scaling import scale_at

RESULTS = Path(__file__).parent / "results" / "proofs_robust.json"
SPIKED = 0.02
SPIKES: dict[str, dict[str, Any]] = {
    "adam": {},
    "spam": {"DeltaT": 100, "warmup_steps": 20, "grad_accu_steps": 10},
    "stable_spam": {"DeltaT": 100, "total_T": 400},
}


def _train(
    optimizer: torch.optim.Optimizer, model: nn.Module, seed: int, steps: int, spike: float = 1.0
) -> dict[str, float]:
    """Steps at a constant rate; the gradients of a random 2 % of them are multiplied. Final loss and test accuracy."""
    x, y, x_test, y_test = proofs.digits()
    draws = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=draws)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        if float(torch.rand((), generator=draws)) < SPIKED:
            for p in model.parameters():
                assert p.grad is not None
                p.grad.mul_(spike)
        optimizer.step()
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(model(x), y))
        right = float((model(x_test).argmax(1) == y_test).double().mean()) * 100
    return {"loss": loss, "accuracy": right}


def _over_seeds(method: str, steps: int = 400, spike: float = 1.0, **h: Any) -> dict[str, float]:
    found = []
    for seed in proofs.SEEDS:
        torch.manual_seed(seed)
        model = proofs.perceptron()
        optimizer = polyak.optim.create(method, model, execution="batched", **h)
        found.append(_train(optimizer, model, seed, steps, spike))
    return {key: round(mean(one[key] for one in found), 4) for key in found[0]}


def spikes() -> dict[str, Any]:
    """Adam, SPAM and Stable-SPAM where the gradients of some steps are far too large."""
    return {
        f"spike {spike:g}": {
            f"{name} lr {lr:g}": _over_seeds(name, spike=spike, lr=lr, **h)
            for name, h in SPIKES.items()
            for lr in (1e-3, 5e-3)
        }
        for spike in (1.0, 100.0, 1000.0)
    }


def smmf() -> dict[str, Any]:
    """State and quality beside AdamW's."""
    rates = (1e-3, 3e-3, 1e-2)
    losses: dict[str, Any] = {f"adamw lr {lr:g}": _over_seeds("adamw", lr=lr, weight_decay=0.0) for lr in rates}
    for rate in (-0.5, -0.8):
        losses |= {f"smmf {rate} lr {lr:g}": _over_seeds("smmf", lr=lr, decay_rate=rate) for lr in rates}
    bytes_of = {}
    for name in ("adamw", "smmf"):
        model = proofs.perceptron()
        optimizer = polyak.optim.create(name, model)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        bytes_of[name] = {
            "digits": round(optimizer.state_bytes() / sum(p.numel() for p in model.parameters()), 3),
            "1024 x 1024": type(optimizer).state_bytes_per_parameter(),
        }
    return {**losses, "bytes a parameter": bytes_of}


def random_scaling() -> dict[str, Any]:
    """The identity behind the exponential scale on a net with kinks, and what scaling does to training."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1)).double()
    params = list(model.parameters())
    start = [p.detach().clone() for p in params]
    step = [torch.randn_like(p) for p in params]
    x = torch.randn(64, 4, dtype=torch.float64)

    def loss_at(scale: float) -> tuple[float, float]:
        """F(x + sD) and <F'(x + sD), D>."""
        for p, w, d in zip(params, start, step, strict=True):
            p.data.copy_(w + scale * d)
        loss = model(x).abs().mean()
        grads = torch.autograd.grad(loss, params)
        return loss.item(), float(sum((g * d).sum() for g, d in zip(grads, step, strict=True)))

    first, _ = loss_at(0.0)
    off = {}
    for name in ("exponential", "none"):
        h = {"distribution": name, "seed": 0, "max_scale": None, "scales": None}
        found = [loss_at(scale_at(h, t)) for t in range(4000)]
        gap = torch.tensor([value - first - along for value, along in found], dtype=torch.float64)
        off[name] = {"mean gap": float(gap.mean()), "standard error": float(gap.std()) / math.sqrt(len(gap))}
    scaled = {
        f"{base} {distribution} lr {lr:g}": _over_seeds("random_scaling", base=base, distribution=distribution, lr=lr)
        for base, rates in (("sgdm", (0.3,)), ("adamw", (3e-3,)))
        for lr in rates
        for distribution in ("none", "exponential")
    }
    return {"identity": off, "digits": scaled}


def _largest_rate(rho: float, delay: int) -> float:
    """The largest of 54 rates at which a quadratic stays below 1 in 1,500 steps."""
    curvatures = torch.tensor([1.0, 0.5, 0.1, 0.01], dtype=torch.float64)
    for lr in torch.logspace(math.log10(2), -5, 54, dtype=torch.float64).tolist():
        w = nn.Parameter(torch.ones(4, dtype=torch.float64))
        late = Delayed(polyak.optim.AdaptiveBraking([w], lr=lr, rho=rho, execution="eager"), delay)
        for _ in range(1500 + delay):
            w.grad = curvatures * w.detach()
            late.step()
            if not float(w.detach().abs().max()) < 1e6:
                break
        if float(w.detach().abs().max()) < 1:
            return round(float(lr), 5)
    return 0.0


def adaptive_braking() -> dict[str, Any]:
    """The rates at which a quadratic stays stable with late gradients."""
    return {
        f"delay {delay}": {f"rho {rho:g}": _largest_rate(rho, delay) for rho in (0.0, 1.0, 2.0)} for delay in (0, 8, 32)
    }


PROOFS = {"spikes": spikes, "smmf": smmf, "random_scaling": random_scaling, "adaptive_braking": adaptive_braking}


if __name__ == "__main__":
    proofs.main(PROOFS, RESULTS, __doc__)
