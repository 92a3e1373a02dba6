"""The small proofs of XGrad, CMS, M3, Delta and Deep Momentum, and of the learning rates from the spectrum.

Prints one line a figure and writes them as JSON, as :mod:`benchmarks.proofs` does; docs/proofs.md reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from proofs import digits, main, on_digits, perceptron
from torch import Tensor, nn
from torch.nn import functional as F

import polyak.optim
from polyak.optim.drivers import CMS, XGrad
from polyak.optim.spectrum import (
    BatchCurvature,
    SpectrumLearner,
    effective_batch,
    spectrum,
)

RESULTS = Path(__file__).parent / "results" / "proofs_drivers.json"
SEEDS = (0, 1, 2)
STEPS, BATCH = 150, 64
PERIODS = (1, 8, 64)


def accuracy(model: nn.Module, x: Tensor, y: Tensor, classes: range = range(10)) -> float:
    """Of the samples of some classes, in percent."""
    chosen = (y >= classes.start) & (y < classes.stop)
    with torch.no_grad():
        return 100 * float((model(x[chosen]).argmax(1) == y[chosen]).float().mean())


def ahead(method: str, s: float, seed: int, **h: Any) -> tuple[float, float]:
    """Train loss and test accuracy on digits with weight prediction."""
    x, y, x_test, y_test = digits()
    torch.manual_seed(seed)
    model = perceptron()
    predicted = XGrad(polyak.optim.create(method, model, **h), steps_ahead=s)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        chosen = torch.randint(len(x), (BATCH,), generator=generator)
        predicted.optimizer.zero_grad()
        with predicted.predicted():
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        predicted.step()
    with torch.no_grad():
        return float(F.cross_entropy(model(x), y)), accuracy(model, x_test, y_test)


def xgrad() -> dict[str, Any]:
    """Spectral radii on a quadratic at h = lr L, and digits at a constant rate, for steps ahead s."""
    radii = {}
    for h in (0.01, 0.5, 1.0):
        maps = {s: torch.tensor([[0.9 - s * h, h], [s * h - 0.9, 1 - h]], dtype=torch.float64) for s in range(3)}
        radii[f"h {h}"] = {f"s {s}": float(torch.linalg.eigvals(m).abs().max()) for s, m in maps.items()}
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "adam 1e-2": ("adam", {"lr": 1e-2}),
        "sgd 0.1": ("sgd", {"lr": 0.1, "momentum": 0.9}),
        "sgd 0.5": ("sgd", {"lr": 0.5, "momentum": 0.9}),
    }
    found = {}
    for name, (method, h) in cases.items():
        for s in range(3):
            runs = [ahead(method, s, seed, **h) for seed in SEEDS]
            found[f"{name}, s {s}"] = {
                "train_loss": mean(r[0] for r in runs),
                "test_accuracy": mean(r[1] for r in runs),
            }
    return {"radii": radii, "digits": found}


def in_turn(make: Callable[[nn.Sequential], Any], seed: int, steps: int = 150) -> tuple[float, float, float]:
    """Digits 0 to 4, then 5 to 9: accuracy on the first before and after, and on the second after."""
    x, y, x_test, y_test = digits()
    torch.manual_seed(seed)
    model = perceptron()
    optimizer, generator = make(model), torch.Generator().manual_seed(seed)
    first, second, before = range(5), range(5, 10), 0.0
    for task in (first, second):
        own = torch.nonzero((y >= task.start) & (y < task.stop)).view(-1)
        for _ in range(steps):
            chosen = own[torch.randint(len(own), (BATCH,), generator=generator)]
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
        before = before or accuracy(model, x_test, y_test, first)
    return before, accuracy(model, x_test, y_test, first), accuracy(model, x_test, y_test, second)


def _turns(make: Callable[[nn.Sequential], Any]) -> dict[str, float]:
    runs = [in_turn(make, seed) for seed in SEEDS]
    return dict(zip(("first before", "first after", "second after"), map(mean, zip(*runs, strict=True)), strict=True))


def cms() -> dict[str, Any]:
    """Two tasks in turn: the three layers step every 1, 8 and 64 steps (last layer fastest), or all every step."""

    def levels(reduction: Any) -> Callable[[nn.Sequential], CMS]:
        def make(model: nn.Sequential) -> CMS:
            layers = [m for m in model if isinstance(m, nn.Linear)]
            groups = [
                {"params": list(m.parameters()), "period": c} for m, c in zip(reversed(layers), PERIODS, strict=True)
            ]
            return CMS(polyak.optim.SGD(groups, lr=0.1), reduction=reduction)

        return make

    return {
        "all every step": _turns(lambda model: polyak.optim.SGD(model.parameters(), lr=0.1)),
        "periods, sums": _turns(levels("sum")),
        "periods, means": _turns(levels("mean")),
    }


def m3() -> dict[str, Any]:
    """A direction of the past in both memories; digits; two tasks in turn."""
    p = nn.Parameter(torch.zeros(8, 8, dtype=torch.float64))
    optimizer = polyak.optim.M3([p], frequency=16, execution="eager")
    old, new = torch.zeros(2, 8, 8, dtype=torch.float64)
    old[0, 0] = new[1, 1] = 1.0
    cosines = {}
    for t in range(1, 321):
        p.grad = old if t <= 160 else new
        optimizer.step()
        if t in (176, 240, 320):
            held = {name: optimizer.state[p][name] for name in ("fast", "slow")}
            cosines[f"{t - 160} steps later"] = {n: float((m * old).sum() / m.norm()) for n, m in held.items()}
    rates: dict[str, dict[str, Any]] = {
        "m3": {"lrs": (3e-3, 1e-2, 3e-2)},
        "muon": {"lrs": (0.01, 0.02, 0.05), "aux_lr": 3e-3},
        "adamw": {"lrs": (3e-3, 1e-2)},
    }
    found = {
        name: {
            f"lr {lr:g}": on_digits(name, SEEDS, lr=lr, **{k: v for k, v in h.items() if k != "lrs"}) for lr in h["lrs"]
        }
        for name, h in rates.items()
    }
    turns = {
        "m3": _turns(lambda model: polyak.optim.M3(model.parameters(), lr=1e-2)),
        "m3, alpha 0": _turns(lambda model: polyak.optim.M3(model.parameters(), lr=1e-2, alpha=0.0)),
        "muon": _turns(lambda model: polyak.optim.Muon(model, lr=0.02, aux_lr=3e-3)),
    }
    return {"cosine with the old direction": cosines, "digits": found, "in turn": turns}


def landscape(method: str, lr: float, **h: Any) -> int:
    """Steps until ``r^2 + 8 (r - theta + 0.6 sin(6 r))^2`` is below 1e-2 from (-3.5, 2); at most 1,000."""
    p = nn.Parameter(torch.tensor([-3.5, 2.0], dtype=torch.float64))
    optimizer = polyak.optim.create(method, [p], lr=lr, execution="eager", **h)
    for t in range(1, 1001):
        optimizer.zero_grad()
        r, theta = p
        value = r**2 + 8 * (r - theta + 0.6 * torch.sin(6 * r)) ** 2
        if float(value.detach()) < 1e-2 or not value.isfinite():
            return t if value.isfinite() else 1001
        value.backward()
        optimizer.step()
    return 1001


def nested() -> dict[str, Any]:
    """The paper's landscape, best of four rates; digits."""
    lrs = (1e-3, 3e-3, 1e-2, 3e-2)
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "heavy ball": ("sgd", {"momentum": 0.9}),
        "delta 0.1": ("nl_delta", {"delta": 0.1}),
        "delta 0.5": ("nl_delta", {"delta": 0.5}),
    }
    steps = {name: min(landscape(method, lr, **h) for lr in lrs) for name, (method, h) in cases.items()}
    rates: dict[str, tuple[str, tuple[float, ...], dict[str, Any]]] = {
        "sgd": ("sgd", (0.03, 0.1), {"momentum": 0.9}),
        "nl_delta": ("nl_delta", (0.03, 0.1), {}),
        "nl_deep": ("nl_deep", (3e-3, 1e-2), {}),
    }
    found = {
        name: {f"lr {lr:g}": on_digits(method, SEEDS, lr=lr, **h) for lr in some}
        for name, (method, some, h) in rates.items()
    }
    return {"landscape, steps": steps, "digits": found}


def _logistic(lr: float, momentum: float | None, steps: int = 100) -> float:
    """Full-batch logistic regression on digits; with no momentum given, the learner sets both from step 0 on."""
    x, y, _, _ = digits()
    model = nn.Linear(64, 10)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum or 0.0)
    learner = SpectrumLearner(optimizer, every=20) if momentum is None else None
    for _ in range(steps):
        if learner is not None:
            learner.step(BatchCurvature(model, x, lambda out: F.cross_entropy(out, y)))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def rmt() -> dict[str, Any]:
    """The largest eigenvalue over batch sizes against all samples; the learner against a grid."""
    x, y, _, _ = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer, generator = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), torch.Generator().manual_seed(0)
    for _ in range(60):
        chosen = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()

    def largest(chosen: Tensor) -> float:
        curvature = BatchCurvature(model, x[chosen], lambda out: F.cross_entropy(out, y[chosen]))
        return float(spectrum(curvature, curvature.size, 15).nodes.max())

    full = largest(torch.arange(len(x)))
    rows = {}
    for batch in (4, 8, 16, 32, 64, 128, 256, 512):
        seen = mean(largest(torch.randperm(len(x), generator=generator)[:batch]) for _ in range(10))
        rows[f"batch {batch}"] = {"seen": seen, "(seen - full) b": (seen - full) * effective_batch(batch, len(x))}
    grid = {(lr, mu): _logistic(lr, mu) for lr in (0.1, 0.3, 1.0, 3.0) for mu in (0.0, 0.9)}
    best = min((v, k) for k, v in grid.items() if v == v)
    return {
        "full": full,
        "batches": rows,
        "logistic, loss after 100 steps": {
            "learner": _logistic(1e-3, None),
            "best of the grid": best[0],
            "at": best[1],
        },
    }


PROOFS: dict[str, Callable[[], dict[str, Any]]] = {
    "xgrad": xgrad,
    "cms": cms,
    "m3": m3,
    "nested": nested,
    "rmt": rmt,
}

if __name__ == "__main__":
    main(PROOFS, RESULTS, __doc__)
