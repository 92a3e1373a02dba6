"""The small proofs of layer-wise second order; docs/proofs.md reads what they write.

Digits with badly scaled inputs: every feature times 10^U(-1, 1), a 64-64-10 network, batches of 128.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from proofs import digits, main
from torch import Tensor, nn

import polyak.optim
from polyak.memory.rank_one import shrink_along

RESULTS = Path(__file__).parent / "results" / "proofs_second.json"
SEEDS = (0, 1)
MOST = 300
GOAL = 0.1


def badly_scaled() -> tuple[Tensor, Tensor]:
    """The training digits, every feature in a unit of its own."""
    x, y, _, _ = digits()
    scales = 10 ** (2 * torch.rand(64, generator=torch.Generator().manual_seed(0)) - 1)
    return (x - x.mean(0)) * scales, y


def steps_to_goal(method: str, seed: int, data: tuple[Tensor, Tensor], dtype: torch.dtype, **h: Any) -> int:
    """Steps until the loss on all training data is below 0.1, looked at every 5 steps; 300 if it never is."""
    x, y = data[0].to(dtype), data[1]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(dtype)
    optimizer = polyak.optim.create(method, model, **h)
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, MOST + 1):
        chosen = torch.randint(len(x), (128,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]).float(), y[chosen]).backward()
        optimizer.step()
        if step % 5 == 0:
            with torch.no_grad():
                if nn.functional.cross_entropy(model(x).float(), y) < GOAL:
                    return step
    return MOST


def race(
    contenders: dict[str, tuple[str, tuple[float, ...], dict[str, Any]]],
    data: tuple[Tensor, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, dict[str, float]]:
    """The mean over the seeds of the steps to the goal, at every learning rate."""
    data = data or badly_scaled()
    return {
        label: {f"lr {lr:g}": mean(steps_to_goal(slug, s, data, dtype, lr=lr, **h) for s in SEEDS) for lr in rates}
        for label, (slug, rates, h) in contenders.items()
    }


BALL = ("sgd", (0.01, 0.03, 0.1), {"momentum": 0.9})


def mkor() -> dict[str, Any]:
    """MKOR against SGD with the same momentum, on digits badly scaled and as they are; and what a refresh costs."""
    contenders: dict[str, Any] = {"sgd": BALL}
    contenders |= {f"mkor, inv_freq {n}": ("mkor", BALL[1], {"inv_freq": n}) for n in (1, 10)}
    x, y, _, _ = digits()
    scaled, plain = race(contenders), race(contenders, ((x - x.mean(0)) / (x.std(0) + 1e-2), y))
    return {"badly scaled": scaled, "of unit variance": plain, "refresh at 1024, ms": refresh_cost(1024)}


def refresh_cost(n: int) -> dict[str, float]:
    """CPU milliseconds of one rank-one update, and of the eigendecomposition that KFAC makes in its stead."""
    torch.manual_seed(0)
    matrix, v = torch.eye(n), torch.randn(n)
    wide = torch.randn(n, n)
    covariance = wide @ wide.T / n

    def seconds(action: Callable[[], Any]) -> float:
        start = time.process_time()
        action()
        return time.process_time() - start

    updates = [seconds(lambda: shrink_along(matrix, v, 0.95)) for _ in range(5)]
    return {"rank one": 1e3 * median(updates), "eigh": 1e3 * seconds(lambda: torch.linalg.eigh(covariance))}


def singd() -> dict[str, Any]:
    """SINGD against SGD with the same momentum, and AdamW; in bfloat16 too."""
    often = {"T": 1, "lr_cov": 0.05, "normalize_lr_cov": True}
    contenders: dict[str, Any] = {"sgd": ("sgd", (0.1,), BALL[2]), "adamw": ("adamw", (0.003, 0.01), {})}
    contenders |= {
        f"singd {k}": ("singd", (0.01, 0.03), {**often, "structures": (k, k)}) for k in ("dense", "diagonal")
    }
    low = {"singd dense": ("singd", (0.03,), often)}
    return {"float32": race(contenders), "bfloat16": race(low, dtype=torch.bfloat16)}


def ikfac() -> dict[str, float]:
    """How far K K^T is from the inverse of the damped second moment, on one batch, after so many steps."""
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 4, bias=False).double(), torch.randn(64, 8, dtype=torch.float64)
    optimizer = polyak.optim.IKFAC(layer, lr=0.0, T=1, lr_cov=1e-2, damping=1e-3)
    want = torch.linalg.inv(x.T @ x / 64 + 1e-3 * torch.eye(8, dtype=torch.float64))
    found = {}
    for step in range(1, 2001):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
        if step in (100, 500, 1000, 2000):
            k = optimizer.state[layer.weight]["input_factor"].view(8, 8)
            found[f"step {step}"] = float((k @ k.T - want).norm() / want.norm())
    return found


PROOFS: dict[str, Callable[[], dict[str, Any]]] = {"mkor": mkor, "ikfac": ikfac, "singd": singd}

if __name__ == "__main__":
    main(PROOFS, RESULTS, __doc__)
