"""The small proofs of what is no chain of rules: several tasks, two levels, several workers.

Prints one line a figure and writes them as JSON. The outcome is recorded whatever it is; docs/proofs.md reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from proofs import main
from torch import Tensor, nn
from torch.nn import functional as F

from polyak.lab.builtin import digits
from polyak.optim import create
from polyak.optim.solvers import MASHA1, MASHA2, SAMGS, BORep, CAGrad, PCGrad, RandK, TopK, multitask_backward

RESULTS = Path(__file__).parent / "results" / "proofs_shapes.json"
AGGREGATORS: dict[str, Callable[..., Any]] = {
    "sum": lambda **_: lambda rows: rows.sum(0),
    "pcgrad": lambda **_: PCGrad(generator=torch.Generator().manual_seed(0)),
    "cagrad": lambda **_: CAGrad(),
    "sam_gs": lambda gamma: SAMGS(gamma),
}


def valley(p: Tensor) -> tuple[Tensor, Tensor]:
    """Two objectives with a narrow valley above and bowls below, the landscape of CAGrad (arXiv:2110.14048)."""
    x, y = p
    above, below = (torch.tanh(s * y / 2).clamp(min=0) for s in (1, -1))
    first = (0.5 * (-x - 7) + torch.tanh(y)).abs().clamp(min=5e-6).log() + 6
    second = (0.5 * (-x + 3) - torch.tanh(y) + 2).abs().clamp(min=5e-6).log() + 6
    bowls = [((-x + s * 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20 for s in (1, -1)]
    return first * above + bowls[0] * below, second * above + bowls[1] * below


def landscape(steps: int = 1000) -> dict[str, Any]:
    """Both objectives at the end, from two starts; the first counts a tenth. The front has sums of -30 to -20."""
    found: dict[str, Any] = {}
    for name, make in AGGREGATORS.items():
        for start in ((-8.5, 7.5), (9.0, 9.0)):
            p = nn.Parameter(torch.tensor(start, dtype=torch.float64))
            optimizer, aggregator = torch.optim.Adam([p], lr=3e-2), make(gamma=0.5)
            for _ in range(steps):
                optimizer.zero_grad()
                first, second = valley(p)
                multitask_backward([0.1 * first, second], aggregator, [p])
                optimizer.step()
            found.setdefault(name, {})[f"from {start}"] = [round(float(f), 2) for f in valley(p.detach())]
    return found


def heads(name: str, lr: float, gamma: float, seed: int, steps: int = 150) -> list[float]:
    """Test accuracy (%) of the three heads of multitask-digits."""
    problem = digits.multitask()
    torch.manual_seed(seed)
    model, aggregator = problem.build_model(seed), AGGREGATORS[name](gamma=gamma)
    optimizer = create("adamw", model, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    trunk, last = list(model[:-1].parameters()), list(model[-1].parameters())
    data = {split: (x, digits.answers(x, y)) for split, (x, y) in digits.splits().items()}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(data["train"][0]), (64,), generator=generator)
        x, y = (t[chosen] for t in data["train"])
        optimizer.zero_grad()
        outputs = model(x).split(list(digits.HEADS.values()), dim=1)
        losses = [F.cross_entropy(out, wanted) for out, wanted in zip(outputs, y.T, strict=True)]
        multitask_backward(losses, aggregator, trunk, last)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        x, y = data["test"]
        outputs = model(x).split(list(digits.HEADS.values()), dim=1)
        return [100 * float((o.argmax(1) == w).double().mean()) for o, w in zip(outputs, y.T, strict=True)]


def multitask() -> dict[str, Any]:
    """Mean accuracy of the heads, and each: digit, parity, side; two seeds."""
    rows: dict[str, Any] = {}
    for label, name, gamma in (
        ("sum", "sum", 0.0), ("pcgrad", "pcgrad", 0.0), ("cagrad", "cagrad", 0.0),
        ("sam_gs, gamma 0.1", "sam_gs", 0.1), ("sam_gs, gamma 0.7", "sam_gs", 0.7),
    ):  # fmt: skip
        for lr in (3e-3, 1e-2):
            runs = [heads(name, lr, gamma, seed) for seed in (0, 1)]
            each = [mean(run[i] for run in runs) for i in range(3)]
            rows.setdefault(label, {})[f"lr {lr:g}"] = {
                "mean": round(mean(each), 2),
                "heads": [round(e, 1) for e in each],
            }
    return rows


def bilevel(eta: float, seed: int, normalize: bool, steps: int = 1200) -> float | str:
    """How far the upper loss ends above its least value of 5, or that it overflows."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(5, 5, generator=generator, dtype=torch.float64) / math.sqrt(5) + torch.eye(5, dtype=torch.float64)
    center = torch.randn(5, generator=generator, dtype=torch.float64)
    x = nn.Parameter(3 * torch.randn(5, generator=generator, dtype=torch.float64))
    y = nn.Parameter((a @ x).detach())
    solver = BORep([x], [y], lr_outer=eta, lr_inner=0.1, nu=0.1, normalize=normalize)

    def upper() -> Tensor:
        return torch.cosh(3 * (y - center)).sum()

    def lower() -> Tensor:
        noise = 0.1 * torch.randn(5, generator=generator, dtype=torch.float64)
        return 0.5 * (y - a @ x).square().sum() + noise @ y

    for _ in range(steps):
        try:
            solver.step(upper, lower)
        except RuntimeError:  # a gradient that is not finite
            return "overflow"
    return float(torch.cosh(3 * (a @ x - center)).sum().detach()) - 5


def bo_rep() -> dict[str, Any]:
    """How far the upper loss ends above its minimum, of two seeds, normalized and not."""
    return {
        name: {
            f"eta {eta:g}": [bilevel(eta, seed, normalize) for seed in (0, 1)] for eta in (1e-7, 1e-5, 1e-3, 1e-2, 5e-2)
        }
        for name, normalize in (("normalized", True), ("plain", False))
    }


def masha(workers: int = 10, n: int = 50, target: float = 1e-4) -> dict[str, Any]:
    """Numbers that a worker has sent until a bilinear game of 100 variables is solved to 1e-4."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(workers, *shape, generator=generator, dtype=torch.float64) for shape in ((n, n), (n,), (n,)))
    eye = 0.2 * torch.eye(n, dtype=torch.float64)
    left = torch.cat([torch.cat([eye, a.mean(0)], 1), torch.cat([-a.mean(0).T, eye], 1)])
    solution = torch.linalg.solve(left, -torch.cat([b.mean(0), c.mean(0)]))
    lipschitz = float(torch.linalg.matrix_norm(left, 2))
    cases: dict[str, Callable[[Any], Any]] = {
        "masha1, Rand-10": lambda z: MASHA1(z, RandK(10), lr=0.2 / lipschitz),
        "masha2, Top-10": lambda z: MASHA2(z, TopK(10), lr=0.12 / lipschitz),
        "masha2, Top-10, Top-20 down": lambda z: MASHA2(z, TopK(10), lr=0.12 / lipschitz, server_compressor=TopK(20)),
    }
    found: dict[str, Any] = {}
    for name, make in cases.items():
        x, y = (nn.Parameter(torch.zeros(n, dtype=torch.float64)) for _ in range(2))
        solver = make([{"params": [x]}, {"params": [y], "maximize": True}])
        losses = [
            lambda i=i, x=x, y=y: x @ a[i] @ y + b[i] @ x - c[i] @ y + 0.1 * x @ x - 0.1 * y @ y for i in range(workers)
        ]
        for _ in range(3000):
            solver.step(losses)
            if float((torch.cat([x, y]).detach() - solution).norm()) < target:
                break
        found[name] = {"sent": solver.sent, "distance": float((torch.cat([x, y]).detach() - solution).norm())}
    return (
        found | _extragradient(a, b, c, solution, lipschitz, target) | {"norm of the solution": float(solution.norm())}
    )


def _extragradient(
    a: Tensor, b: Tensor, c: Tensor, solution: Tensor, lipschitz: float, target: float
) -> dict[str, Any]:
    """Extragradient without compression, and with Rand-10 on every operator."""

    def operators(z: Tensor) -> Tensor:
        x, y = z.chunk(2)
        return torch.cat([a @ y + b + 0.2 * x, -(torch.einsum("kij,i->kj", a, x) - c - 0.2 * y)], 1)

    found, generator = {}, torch.Generator().manual_seed(1)
    cases: dict[str, tuple[float, int, Callable[[Tensor], Tensor]]] = {
        "extragradient": (0.5, 100, lambda u: u),
        "extragradient, Rand-10": (0.05, 10, lambda u: RandK(10)(u, generator)),
    }
    for name, (share, each, compress) in cases.items():
        z, sent = torch.zeros_like(solution), 0
        for _ in range(3000):
            half = z - share / lipschitz * torch.stack([compress(u) for u in operators(z)]).mean(0)
            z = z - share / lipschitz * torch.stack([compress(u) for u in operators(half)]).mean(0)
            sent += 2 * each
            if float((z - solution).norm()) < target:
                break
        found[name] = {"sent": sent, "distance": float((z - solution).norm())}
    return found


PROOFS: dict[str, Callable[[], dict[str, Any]]] = {
    "landscape": landscape,
    "multitask-digits": multitask,
    "bo_rep": bo_rep,
    "masha": masha,
}

if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors here are small
    main(PROOFS, RESULTS, __doc__)
