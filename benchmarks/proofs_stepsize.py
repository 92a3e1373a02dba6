"""The small proofs of methods that find their step size, or their memory, from a model of the loss.

As proofs.py; writes results/proofs_stepsize.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from proofs import digits, main, perceptron
from torch import Tensor, nn

import polyak.optim

RESULTS = Path(__file__).parent / "results" / "proofs_stepsize.json"


def on_digits(method: str, lr: float, epochs: int = 10, batch: int = 128, **h: Any) -> dict[str, float | None]:
    """Train loss (None if it diverged) and test accuracy (%) of the perceptron at a constant rate, of one seed."""
    x, y, x_test, y_test = digits()
    torch.manual_seed(0)
    model, generator = perceptron(), torch.Generator().manual_seed(0)
    optimizer = polyak.optim.get(method)(model.parameters(), lr=lr, execution="batched", **h)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(batch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            if bool(loss.isfinite()):  # of what has diverged nothing is left to train
                loss.backward()
                optimizer.step(loss=loss)
    with torch.no_grad():
        found = float(nn.functional.cross_entropy(model(x), y))
        accuracy = 100 * float((model(x_test).argmax(1) == y_test).float().mean())
    return {"loss": round(found, 4) if math.isfinite(found) else None, "accuracy": round(accuracy, 2)}


def over_rates(methods: dict[str, dict[str, Any]], rates: Sequence[float]) -> dict[str, Any]:
    """Methods, by what they are called, at each rate."""
    return {
        name: {f"lr {lr:g}": on_digits(**{"method": name, **h}, lr=lr) for lr in rates} for name, h in methods.items()
    }


def momo() -> dict[str, Any]:
    """How wide the range of good rates is, over which the cap of MoMo and the rate of SGD and Adam go."""
    averaging = {"momentum": 0.9, "dampening": 0.9}
    first = over_rates(
        {"sgd": averaging, "momo": {}, "momo*": {"method": "momo", "use_fstar": True}}, (0.01, 0.1, 1.0, 10.0, 100.0)
    )
    return first | over_rates({"adam": {}, "momo_adam": {}}, (1e-4, 1e-3, 1e-2, 1e-1, 1.0))


def alr() -> dict[str, Any]:
    """Steps to within 1e-8 of the least value, a quadratic of condition 1e3, by momentum."""
    betas = (0.5, 0.8, 0.9, 0.95, 0.99)
    methods: dict[str, tuple[str, dict[str, Any]]] = {
        "heavy ball, lr 1/L": ("sgd", {"lr": 1.0}),
        "alr_hb": ("alr_hb", {"lr": float("inf")}),
        "alr_hb v2": ("alr_hb", {"lr": float("inf"), "v2": True}),
        "alr_mag": ("alr_mag", {"lr": float("inf")}),
        "alr_nag": ("alr_nag", {"lr": float("inf")}),
    }
    return {
        name: {f"momentum {beta:g}": _steps_to(1e-8, method, momentum=beta, **h) for beta in betas}
        for name, (method, h) in methods.items()
    }


def _quadratic(size: int, condition: float) -> tuple[Tensor, Tensor]:
    """Curvatures from 1/condition to 1, and a start."""
    curves = torch.logspace(0, -float(torch.tensor(condition).log10()), size, dtype=torch.float64)
    return curves, torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _steps_to(target: float, method: str, most: int = 10_000, **h: Any) -> int:
    curves, start = _quadratic(100, 1e3)
    p = nn.Parameter(start.clone())
    optimizer = polyak.optim.get(method)([p], execution="eager", **h)
    for step in range(most):
        gradient = curves * p.detach()
        loss = float(gradient @ p.detach()) / 2
        if loss < target:
            return step
        p.grad = gradient
        optimizer.step(loss=loss)
    return most


def am() -> dict[str, Any]:
    """AM-SGD against an average of 0.9: a quadratic of condition 1e4, noisy ones of condition 100, and digits."""
    averaging = {"momentum": 0.9, "dampening": 0.9}
    methods: dict[str, dict[str, Any]] = {"sgd": averaging, "am_sgd": {}}
    quadratic = {name: {f"lr {lr:g}": _last(name, lr, **h) for lr in (1, 2, 5, 20)} for name, h in methods.items()}
    plain = {"gradient descent": {"momentum": 0.0}, "sgd": averaging, "am_sgd": {}}
    noisy = {
        name: {f"noise {s:g}": _stationary("am_sgd" if name == "am_sgd" else "sgd", s, **h) for s in (0.01, 0.1, 1.0)}
        for name, h in plain.items()
    }
    trained = over_rates(methods, (0.1, 1.0)) | over_rates({"adamw": {}, "am_adamw": {}}, (1e-3, 1e-2))
    return {"quadratic": quadratic, "noisy quadratic": noisy, "digits": trained}


def _last(method: str, lr: float, steps: int = 500, **h: Any) -> float:
    curves, start = _quadratic(50, 1e4)
    p = nn.Parameter(start.clone())
    optimizer = polyak.optim.get(method)([p], lr=lr, execution="eager", **h)
    for _ in range(steps):
        p.grad = curves * p.detach()
        optimizer.step()
    return float(curves @ p.detach().square()) / 2


def _stationary(method: str, noise: float, steps: int = 1000, **h: Any) -> float:
    """The mean loss of the second half of the steps at lr 1."""
    curves, start = _quadratic(50, 100)
    p, generator = nn.Parameter(start.clone()), torch.Generator().manual_seed(1)
    optimizer = polyak.optim.get(method)([p], lr=1.0, execution="eager", **h)
    losses = []
    for _ in range(steps):
        losses.append(float(curves @ p.detach().square()) / 2)
        p.grad = curves * p.detach() + noise * torch.randn(len(p), generator=generator, dtype=torch.float64)
        optimizer.step()
    return mean(losses[steps // 2 :])


PROOFS: dict[str, Callable[[], dict[str, Any]]] = {"momo": momo, "alr": alr, "am": am}

if __name__ == "__main__":
    torch.set_num_threads(1)
    main(PROOFS, RESULTS, __doc__)
