"""Small proofs of methods for matrices beside Muon: what each claims, tried at a size that takes a minute.

python benchmarks/proofs_matrix.py [--only namo,auon] [--json PATH]
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from proofs import main, on_digits
from torch import Tensor

import polyak.optim
from polyak.memory import newton_schulz

RESULTS = Path(__file__).parent / "results" / "proofs_matrix.json"
SEEDS = (0, 1)
AUX: dict[str, Any] = {"aux_lr": 3e-3}


def best(method: str, rates: tuple[float, ...], **options: Any) -> dict[str, float]:
    """The best train loss on digits over learning rates, and where."""
    runs = {lr: on_digits(method, seeds=SEEDS, lr=lr, **options) for lr in rates}
    lr = min(runs, key=lambda rate: runs[rate]["train_loss"] if math.isfinite(runs[rate]["train_loss"]) else math.inf)
    return {"lr": lr, **runs[lr]}


def namo() -> dict[str, Any]:
    """Digits, batch 8, constant rate; and the size of a step against lr, from pure signal to pure noise."""
    options: dict[str, Any] = {"steps": 200, "batch": 8, "cosine": False, "weight_decay": 0.0, **AUX}
    rates = (1e-3, 3e-3, 1e-2, 3e-2)
    return {
        "size of the step over lr": {f"noise {s}": _size_over_lr(s) for s in (0.0, 1.0, 10.0, 1000.0)},
        "digits": {
            "muon": best("muon", rates, adjust_lr="match_rms_adamw", **options),
            "namo": best("namo", rates, **options),
            "namo_d": best("namo_d", rates, **options),
        },
    }


def _size_over_lr(noise: float) -> float:
    """Mean of ``|U| / sqrt(v)`` with its corrections, without Nesterov, late in a stream of gradients."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    p = torch.nn.Parameter(torch.zeros(16, 16, dtype=torch.float64))
    optimizer = polyak.optim.create("namo", [p], lr=1.0, nesterov=False)
    seen = []
    for t in range(600):
        p.grad = signal + noise * torch.randn(16, 16, generator=generator, dtype=torch.float64)
        if t >= 500:
            seen.append(next(iter(optimizer.diagnostics().values()))["size"])
        optimizer.step()
    return mean(seen)


def auon() -> dict[str, Any]:
    """Cost of the brake against five Newton-Schulz steps on 1024 x 1024, and digits."""
    g = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"steps": 150, **AUX}
    return {
        "Newton-Schulz over brake, time": _fastest(lambda: newton_schulz(g)) / _fastest(lambda: _brake(g)),
        "digits": {
            "auon": best("auon", (0.24, 0.8, 2.4), **options),
            "auon, paper": best("auon", (0.03, 0.1, 0.3), variant="paper", gamma=1.0, **options),
            "hybrid_auon": best("hybrid_auon", (0.01, 0.03, 0.1), **options),
            "muon": best("muon", (0.01, 0.03, 0.1), **options),
            "adamw": best("adamw", (1e-3, 3e-3, 1e-2), steps=150),
        },
    }


def _brake(g: Tensor) -> Tensor:
    unit = g * (1.5 / (g.norm() + 1e-7))
    return g / (torch.cosh(unit).square().mean().sqrt() + 1e-8)


def _fastest(work: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def cmuon() -> dict[str, Any]:
    """Digits at equal rates and the best of them."""
    options: dict[str, Any] = {"steps": 150, **AUX}
    return {
        f"lr {lr:g}": {name: on_digits(name, seeds=SEEDS, lr=lr, **options) for name in ("muon", "cmuon")}
        for lr in (0.003, 0.01, 0.03)
    }


def fismo() -> dict[str, Any]:
    """``|A (W - W*) B|^2 / 2`` with condition numbers of 100, 16 x 16: final loss over that of the start."""
    normalized = {"normalize_stats": True, "beta_fisher": 0.99, "damping": 0.1}
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "muon": ("muon", {"nesterov": False, "adjust_lr": None}),
        "fismo, as printed": ("fismo", {}),
        "fismo, normalized": ("fismo", normalized),
    }
    rates = (3e-3, 1e-2, 3e-2, 1e-1)
    return {
        **{
            f"noise {noise}": {
                name: min(_least_squares(method, noise, lr=lr, **h) for lr in rates)
                for name, (method, h) in cases.items()
            }
            for noise in (0.0, 1.0)
        },
        "condition of the step": {name: _condition(method, h) for name, (method, h) in cases.items()},
    }


def _problem() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, 16, dtype=torch.float64)
    turns = [torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64))[0] for _ in range(4)]
    target = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    return turns[0] * scale @ turns[1], turns[2] * scale @ turns[3], target


def _least_squares(method: str, noise: float, **h: Any) -> float:
    a, b, target = _problem()
    w = torch.nn.Parameter(torch.zeros(16, 16, dtype=torch.float64))
    optimizer = polyak.optim.create(method, [w], ns_coefficients="svd", **h)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 300)
    generator = torch.Generator().manual_seed(1)
    start = float((a @ target @ b).square().sum())
    for _ in range(300):
        g = a.T @ (a @ (w.detach() - target) @ b) @ b.T
        drawn = torch.randn(16, 16, generator=generator, dtype=torch.float64)
        w.grad = g + noise * drawn * (g.norm() / drawn.norm())
        optimizer.step()
        schedule.step()
    final = float((a @ (w.detach() - target) @ b).square().sum()) / start
    return final if math.isfinite(final) else math.inf


def _condition(method: str, h: dict[str, Any]) -> float:
    """Condition number of the hundredth step at a small rate."""
    a, b, target = _problem()
    w = torch.nn.Parameter(torch.zeros(16, 16, dtype=torch.float64))
    optimizer = polyak.optim.create(method, [w], ns_coefficients="svd", lr=1e-3, **h)
    before = w.detach().clone()
    for _ in range(100):
        w.grad = a.T @ (a @ (w.detach() - target) @ b) @ b.T
        before = w.detach().clone()
        optimizer.step()
    values = torch.linalg.svdvals(w.detach() - before)
    return float(values[0] / values[-1])


PROOFS: dict[str, Callable[[], dict[str, Any]]] = {"namo": namo, "auon": auon, "cmuon": cmuon, "fismo": fismo}

if __name__ == "__main__":
    main(PROOFS, RESULTS, __doc__)
