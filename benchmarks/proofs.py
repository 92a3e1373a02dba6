"""The small proofs: what each method claims, tried at a size that two cores run in minutes.

Prints one line a figure and writes them as JSON. The outcome is recorded whatever it is; docs/proofs.md reads it.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import polyak.optim
from polyak.memory.matrix import newton_schulz

RESULTS = Path(__file__).parent / "results" / "proofs.json"
SEEDS = (0, 1, 2)


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's digits, scaled to [0, 1], split into 1,297 for training and 500 for test."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.data, dtype=torch.float32)[order] / 16
    y = torch.tensor(data.target)[order]
    return x[500:], y[500:], x[:500], y[:500]


def perceptron(norm: bool = False) -> nn.Sequential:
    """64-128-128-10, with batch normalisation if ``norm``."""
    sizes, layers = (64, 128, 128), []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 10))


def train(
    method: str, seed: int, steps: int = 150, batch: int = 64, norm: bool = False, cosine: bool = True,
    noise: float = 0.0, **h: Any,
) -> tuple[float, float, nn.Module, float]:  # fmt: skip
    """Train the perceptron; returns train loss, test accuracy (%), the model, and its hidden weights' norm growth.

    ``noise`` is the standard deviation of what is added to every entry of every gradient.
    """
    x, y, x_test, y_test = digits()
    torch.manual_seed(seed)
    model = perceptron(norm)
    optimizer = polyak.optim.create(method, model, **h)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    start = _hidden_norm(model)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(x), (batch,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        if noise:
            for p in model.parameters():
                assert p.grad is not None
                p.grad += noise * torch.randn(p.shape, generator=generator)
        optimizer.step()
        if schedule:
            schedule.step()
    growth = _hidden_norm(model) / start
    model.eval()
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(model(x), y))
        accuracy = 100 * float((model(x_test).argmax(1) == y_test).float().mean())
    return loss, accuracy, model, growth


def _hidden_norm(model: nn.Module) -> float:
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)][:-1]
    return math.prod(float(m.weight.detach().norm()) for m in linear) ** (1 / len(linear))


def on_digits(method: str, seeds: tuple[int, ...] = SEEDS, **options: Any) -> dict[str, float]:
    """Means over seeds of train loss and test accuracy."""
    runs = [train(method, seed, **options) for seed in seeds]
    return {"train_loss": mean(r[0] for r in runs), "test_accuracy": mean(r[1] for r in runs)}


def steps_to(function: Callable[[Tensor], Tensor], start: list[float], target: float, method: str, **h: Any) -> int:
    """Steps until ``function`` is below ``target``; at most 20,000."""
    p = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = polyak.optim.create(method, [p], **h)
    for t in range(1, 20_001):
        optimizer.zero_grad()
        loss = function(p)
        loss.backward()
        optimizer.step()
        if float(function(p.detach())) < target:
            return t
    return 20_001


def beale(p: Tensor) -> Tensor:
    """Beale's function; minimum 0 at (3, 0.5)."""
    x, y = p
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def rosenbrock(p: Tensor) -> Tensor:
    """Rosenbrock's function; minimum 0 at (1, 1)."""
    return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2


def adabelief() -> dict[str, Any]:
    """Toys of the AdaBelief card: steps to the target, Adam against AdaBelief."""
    cases: dict[str, tuple[Callable[[Tensor], Tensor], list[float], float]] = {
        "|x| + |y|": (lambda p: p.abs().sum(), [5.0, 3.0], 0.05),
        "|x + y| + |x - y| / 10": (lambda p: (p[0] + p[1]).abs() + (p[0] - p[1]).abs() / 10, [5.0, 3.0], 0.05),
        "Beale": (beale, [1.0, 1.0], 1e-3),
        "Rosenbrock": (rosenbrock, [-1.5, 2.0], 1e-3),
    }
    return {
        name: {
            "adam": steps_to(*case, "adam", lr=1e-3),
            "adabelief": steps_to(*case, "adabelief", lr=1e-3, eps=1e-16, rectify=False),
        }
        for name, case in cases.items()
    }


def adamp() -> dict[str, Any]:
    """Growth of the norm of hidden weights under batch normalisation, constant lr, 400 steps."""
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "sgd": ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        "sgdp": ("sgdp", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        "adam": ("adam", {"lr": 1e-2}),
        "adamp": ("adamp", {"lr": 1e-2}),
    }
    out = {}
    for name, (method, h) in cases.items():
        runs = [train(method, seed, steps=400, norm=True, cosine=False, **h) for seed in SEEDS]
        out[name] = {"norm_growth": mean(r[3] for r in runs), "test_accuracy": mean(r[1] for r in runs)}
    return out


def grid(methods: dict[str, dict[str, Any]], rates: tuple[float, ...], **options: Any) -> dict[str, Any]:
    """Train loss and test accuracy on digits over learning rates."""
    return {
        name: {f"lr {lr:g}": on_digits(h.get("method", name), lr=lr, **{**_options(h), **options}) for lr in rates}
        for name, h in methods.items()
    }


def _options(h: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in h.items() if k != "method"}


def cautious() -> dict[str, Any]:
    """Heavy ball on an ill-conditioned quadratic (rises of f, final f), and C-AdamW and C-Lion on digits."""

    def run(method: str, momentum: float, lr: float, **h: Any) -> dict[str, float]:
        p = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        optimizer = polyak.optim.create(method, [p], lr=lr, momentum=momentum, **h)
        values = []
        for _ in range(300):
            optimizer.zero_grad()
            loss = 0.5 * (p[0] ** 2 + 50 * p[1] ** 2)
            loss.backward()
            values.append(float(loss))
            optimizer.step()
        return {"rises": sum(b > a for a, b in pairwise(values)), "final": values[-1]}

    toy = {
        f"momentum {mu}, lr {lr}": {
            "sgd": run("sgd", mu, lr),
            "csgdm": run("csgdm", mu, lr),
            "csgdm, count": run("csgdm", mu, lr, mask_scale="count"),
        }
        for mu, lr in ((0.99, 1e-3), (0.9, 1e-2))
    }
    adam = grid({"adamw": {}, "cadamw": {"eps": 1e-8}}, (1e-3, 3e-3, 1e-2), weight_decay=0.0)
    return {"quadratic": toy, "digits": adam | grid({"lion": {}, "clion": {"betas": (0.9, 0.99)}}, (1e-3, 3e-3))}


def ademamix() -> dict[str, Any]:
    """Rosenbrock from (-3, 5), lr 1e-3: mean distance to (1, 1) over the last 200 of 8,000 steps."""

    def run(method: str, **h: Any) -> float:
        p = torch.nn.Parameter(torch.tensor([-3.0, 5.0], dtype=torch.float64))
        optimizer = polyak.optim.create(method, [p], lr=1e-3, **h)
        distances = []
        for _ in range(8000):
            optimizer.zero_grad()
            rosenbrock(p).backward()
            optimizer.step()
            distances.append(float((p.detach() - 1).norm()))
        return mean(distances[-200:])

    return {
        "adam, beta1 0.9": run("adam"),
        "adam, beta1 0.9999": run("adam", betas=(0.9999, 0.999)),
        "ademamix, alpha 9": run("ademamix", alpha=9.0),
    }


def tam() -> dict[str, Any]:
    """TAM at twice the lr of SGD with momentum, on digits, 200 steps."""
    options: dict[str, Any] = {"steps": 200, "seeds": (0, 1)}
    return {
        f"batch {batch}": {
            "sgd": {f"lr {lr}": on_digits("sgd", lr=lr, momentum=0.9, batch=batch, **options) for lr in rates},
            "tam": {f"lr {2 * lr}": on_digits("tam", lr=2 * lr, batch=batch, **options) for lr in rates},
        }
        for batch, rates in ((64, (0.03, 0.1, 0.3)), (8, (0.03, 0.1)))
    }


def muon() -> dict[str, Any]:
    """Singular values after Newton-Schulz; digits; an ill-conditioned matrix least-squares problem."""
    generator = torch.Generator().manual_seed(0)
    values = torch.linalg.svdvals(newton_schulz(torch.randn(64, 256, generator=generator, dtype=torch.float64)))
    options: dict[str, Any] = {"steps": 300, "batch": 128}
    rows: dict[str, Any] = {f"muon {lr}": on_digits("muon", lr=lr, aux_lr=3e-3, **options) for lr in (0.02, 0.05)}
    rows |= {f"sgd {lr}": on_digits("sgd", lr=lr, momentum=0.9, **options) for lr in (0.1, 0.3)}
    rows |= {f"adamw {lr}": on_digits("adamw", lr=lr, **options) for lr in (3e-3, 1e-2)}
    return {
        "singular values": [float(values.min()), float(values.max())],
        "digits": rows,
        "least squares, loss after 200 steps": {
            "muon": min(_least_squares("muon", lr=lr) for lr in (0.01, 0.02, 0.05, 0.1)),
            "sgd": min(_least_squares("sgd", lr=lr, momentum=0.9) for lr in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
        },
    }


def _least_squares(method: str, **h: Any) -> float:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(64, 32, generator=generator) * torch.logspace(0, -2, 32)
    b = torch.randn(32, 64, generator=generator) * torch.logspace(0, -2, 32)[:, None]
    c = a @ torch.randn(32, 32, generator=generator) @ b
    w = torch.nn.Parameter(torch.zeros(32, 32))
    optimizer = polyak.optim.create(method, [w], **h)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 200)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (a @ w @ b - c).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    final = float((a @ w @ b - c).square().mean())
    return final if math.isfinite(final) else math.inf


def ano() -> dict[str, Any]:
    """Digits with Gaussian noise on every gradient, batch 32, 200 steps."""
    methods: dict[str, dict[str, Any]] = {"adam": {}, "ano": {}, "anolog": {}, "lion": {}}
    options: dict[str, Any] = {"steps": 200, "batch": 32, "seeds": (0, 1)}
    return {f"noise {s}": grid(methods, (1e-3, 3e-3, 1e-2, 3e-2), noise=s, **options) for s in (0.0, 0.03, 0.1)}


def lionk() -> dict[str, Any]:
    """Where Lion-K ends on ``|x - c|^2 / 2`` with a weight decay of 1, against the minimum under its constraint."""
    c = torch.tensor([3.0, -2.0, 0.4, 1.2], dtype=torch.float64)
    bounded = c.clamp(-1, 1)
    cases: list[tuple[dict[str, Any], int, Callable[[Tensor], Tensor]]] = [
        ({"kappa": "l1"}, 20_000, lambda x: x - bounded),
        ({"kappa": "l2sq"}, 20_000, lambda x: x - c / 2),
        ({"kappa": "dead", "e": 0.5}, 20_000, lambda x: x - (c.sign() * (c.abs() - 0.5).clamp(min=0)).clamp(-1, 1)),
        ({"kappa": "huber", "e": 0.5}, 20_000, lambda x: x - (c / 1.5).clamp(-1, 1)),
        ({"kappa": "l2"}, 60_000, lambda x: x - c / c.norm()),
        ({"kappa": "lp", "p": 1.5}, 60_000, lambda x: x.abs().pow(3).sum() - 1),
    ]
    return {h["kappa"]: float(off(_ends(c, steps, **h)).abs().max()) for h, steps, off in cases}


def _ends(c: Tensor, steps: int, **h: Any) -> Tensor:
    p = torch.nn.Parameter(torch.zeros_like(c))
    optimizer = polyak.optim.create("lionk", [p], weight_decay=1.0, **h)
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - t / steps)
        p.grad = p.detach() - c
        optimizer.step()
    return p.detach()


def large_batch() -> dict[str, Any]:
    """LARS and LAMB against tuned Nesterov and AdamW, digits, batches as large as the data, 40 steps."""
    rates: dict[str, tuple[tuple[float, ...], dict[str, Any]]] = {
        "lars": ((0.1, 0.3, 1.0, 3.0), {"trust_coeff": 0.01}),
        "sgd": ((0.03, 0.1, 0.3, 1.0), {"momentum": 0.9, "nesterov": True}),
        "lamb": ((0.01, 0.03, 0.1, 0.3), {}),
        "adamw": ((3e-3, 0.01, 0.03, 0.1), {}),
    }
    return {
        name: {f"lr {lr:g}": on_digits(name, lr=lr, steps=40, batch=1297, **h) for lr in lrs}
        for name, (lrs, h) in rates.items()
    }


def sgd_sai() -> dict[str, Any]:
    """SGD-SaI against SGD with momentum and AdamW on digits, and bytes of state a weight."""
    rates: dict[str, tuple[tuple[float, ...], dict[str, Any]]] = {
        "sgd_sai": ((1e-3, 3e-3, 1e-2, 3e-2), {}),
        "sgd": ((0.03, 0.1, 0.3, 1.0), {"momentum": 0.9}),
        "adamw": ((1e-3, 3e-3, 1e-2, 3e-2), {}),
    }
    return {name: {f"lr {lr:g}": on_digits(name, lr=lr, **h) for lr in lrs} for name, (lrs, h) in rates.items()} | {
        "bytes": {name: polyak.optim.get(name).state_bytes_per_parameter() for name in ("sgd_sai", "adamw")}
    }


PROOFS: dict[str, Callable[[], dict[str, Any]]] = {
    "adabelief": adabelief,
    "adamp": adamp,
    "adan": lambda: grid({"adamw": {}, "adan": {}}, (1e-2, 3e-2, 1e-1), steps=120, weight_decay=0.0),
    "ademamix": ademamix,
    "cautious": cautious,
    "grams": lambda: grid({"adamw": {}, "grams": {}}, (1e-3, 3e-3, 1e-2), weight_decay=0.0),
    "lion": lambda: grid({"adamw": {}, "lion": {}}, (1e-3, 3e-3, 1e-2), weight_decay=0.0),
    "tam": tam,
    "muon": muon,
    "ano": ano,
    "lionk": lionk,
    "alphaadam": lambda: grid({"adamw": {}, "alphaadam": {}, "cadamw": {}}, (1e-3, 3e-3, 1e-2), weight_decay=0.0),
    "large batch": large_batch,
    "sgd_sai": sgd_sai,
}


def main(proofs: dict[str, Callable[[], Any]], path: Path, about: str | None) -> None:
    """Run the chosen proofs and add them to the results."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--only", default=",".join(proofs), help="comma-separated proofs")
    parser.add_argument("--json", type=Path, default=path)
    args = parser.parse_args()
    results = json.loads(args.json.read_text()) if args.json.exists() else {}
    for name in args.only.split(","):
        results[name] = proofs[name]()
        print(name, json.dumps(results[name], indent=2), flush=True)
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main(PROOFS, RESULTS, __doc__)
