"""The small proofs of asynchronous local updates and of MT-DAO, all workers simulated in one process.

Prints one line a figure and writes them as JSON, as :mod:`benchmarks.proofs` does; docs/proofs.md reads it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from proofs import main
from torch import Tensor
from torch.func import functional_call
from torch.nn import Parameter, Sequential
from torch.nn import functional as F

import polyak.optim
from polyak.distributed import DelayedNesterov
from polyak.distributed.simulation import Job, Server, Simulation, local_steps

RESULTS = Path(__file__).parent / "results" / "proofs_distributed.json"
SECONDS = (0.58, 0.75, 1.51, 3.33)
"""Of a step, by worker."""
H, MARKS = 20, (1500, 3000)
DIM, CLASSES, CLUSTERS = 64, 4, 8


def mixture(n: int, seed: int, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Points of a mixture of Gaussians and their classes."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(CLASSES * CLUSTERS, (n,), generator=generator)
    return centers[chosen] + torch.randn(n, DIM, generator=generator), chosen % CLASSES


class Problem:
    """A perceptron on the mixture; workers step it by AdamW with memories of their own."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.centers = 0.75 * torch.randn(CLASSES * CLUSTERS, DIM, generator=generator)
        torch.manual_seed(0)
        self.model = Sequential(torch.nn.Linear(DIM, 128), torch.nn.ReLU(), torch.nn.Linear(128, CLASSES))
        self.names = [name for name, _ in self.model.named_parameters()]
        self.test = mixture(4000, 1, self.centers)
        self.own: dict[int, tuple[list[Parameter], torch.optim.Optimizer]] = {}
        self.made: dict[int, int] = {}

    def loss(self, weights: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = F.cross_entropy(
            functional_call(self.model, dict(zip(self.names, weights, strict=True)), (x,)), y
        )
        return found

    def train(self, job: Job) -> list[Tensor]:
        """A worker's local steps."""
        if job.worker not in self.own:
            params = [Parameter(w.clone()) for w in job.weights]
            self.own[job.worker] = params, torch.optim.AdamW(params, lr=2e-3, weight_decay=0.1)
        params, optimizer = self.own[job.worker]
        with torch.no_grad():
            for p, w in zip(params, job.weights, strict=True):
                p.copy_(w)
        for _ in range(job.steps):
            self.made[job.worker] = self.made.get(job.worker, 0) + 1
            x, y = mixture(32, 100_000 * (job.worker + 1) + self.made[job.worker], self.centers)
            optimizer.zero_grad()
            self.loss(params, x, y).backward()
            optimizer.step()
        return [p.detach().clone() for p in params]


def asynchronous() -> dict[str, Any]:
    """Loss after so many local steps of all workers, and the simulated time of the last."""
    nesterov = {"momentum": 0.9, "nesterov": True}
    speeds = [1 / s for s in SECONDS]
    found = {}
    cases: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
        "synchronous 0.7": ("sgd", {"lr": 0.7, **nesterov}, {"rule": "mean"}, {"max_wait": math.inf}),
        "naive 0.7": ("sgd", {"lr": 0.7, **nesterov}, {"weight": "constant"}, {}),
        "naive 0.07": ("sgd", {"lr": 0.07, **nesterov}, {"weight": "constant"}, {}),
        "buffered 0.7": ("sgd", {"lr": 0.7, **nesterov}, {"rule": "buffered"}, {}),
        "DN 0.7": ("delayed_nesterov", {"lr": 0.7}, {}, {}),
        "DN 0.7, c = 1/4": ("delayed_nesterov", {"lr": 0.7, "momentum_activation": 0.25}, {}, {}),
        "DN + DyLU 0.7": ("delayed_nesterov", {"lr": 0.7}, {}, {"steps": local_steps(speeds, H)}),
    }
    for name, (method, options, rule, how) in cases.items():
        problem = Problem()
        start = [Parameter(p.detach().clone()) for p in problem.model.parameters()]
        outer = polyak.optim.get(method)(start, execution="eager", **options)
        simulation = Simulation(Server(outer, 4, **rule), problem.train, speeds, **{"steps": H, **how})
        losses = {}
        for mark in MARKS:
            simulation.run(mark)
            with torch.no_grad():
                losses[f"loss at {mark}"] = float(problem.loss(simulation.server.params, *problem.test))
        found[name] = {**losses, "seconds": simulation.time}
    return found


def turns(make: Any, workers: int, total: int = 4000) -> float:
    """``x^2 / 2`` by workers in turn, each with the gradient where it last was: the last ``|x|``."""
    x = Parameter(torch.ones((), dtype=torch.float64))
    optimizer = make([x])
    known = [x.detach().clone() for _ in range(workers)]
    for t in range(total):
        x.grad = known[t % workers].clone()
        optimizer.step()
        known[t % workers] = x.detach().clone()
        if abs(x.item()) > 1e6:
            return math.inf
    return abs(x.item())


def staleness() -> dict[str, Any]:
    """The last |x| by outer lr and workers; Infinity where it diverges."""
    found = {}
    for k in (4, 8):
        for lr in (0.1, 0.2, 0.4, 0.8):
            delayed = turns(lambda p, lr=lr, k=k: DelayedNesterov(p, lr=lr, buffer_size=k, execution="eager"), k)
            naive = turns(
                lambda p, lr=lr, k=k: polyak.optim.SGD(p, lr=lr / k, momentum=0.9, nesterov=True, execution="eager"), k
            )
            found[f"{k} workers, lr {lr}"] = {"delayed": delayed, "naive": naive}
    return found


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two vectors."""
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-30))


def alignment(slow: float, weight: float, outer: bool, k: int = 32, workers: int = 4) -> dict[str, float]:
    """Mean cosine of local pseudo-gradients with the momentum that all share, and the last loss, on a quadratic."""
    generator = torch.Generator().manual_seed(0)
    curvature = torch.logspace(-2, 0, 100, dtype=torch.float64)
    x = [Parameter(torch.ones(100, dtype=torch.float64)) for _ in range(workers)]
    options: dict[str, Any] = {"betas": ((slow,), 0.9999), "weight": (weight,), "lr": 3e-3, "max_grad_norm": 0.0}
    local = [polyak.optim.MTDAO([p], execution="eager", **options) for p in x]
    server = Parameter(x[0].detach().clone())
    outside = torch.optim.SGD([server], lr=0.7, momentum=0.9, nesterov=True)
    seen: list[float] = []
    for period in range(60):
        if period:
            shared = outside.state[server]["momentum_buffer"] if outer else local[0].state[x[0]]["exp_avg_1"].clone()
        for _ in range(k):
            for p, optimizer in zip(x, local, strict=True):
                p.grad = curvature * p.detach() + torch.randn(100, generator=generator, dtype=torch.float64)
                optimizer.step()
        deltas = [server.detach() - p.detach() for p in x]
        if period >= 5:
            seen += [cosine(delta, shared) for delta in deltas]
        server.grad = torch.stack(deltas).mean(0)
        if outer:
            outside.step()
        else:
            server.data -= server.grad
            for name in ("exp_avg_1", "exp_avg_sq"):
                average = torch.stack([o.state[p][name] for o, p in zip(local, x, strict=True)]).mean(0)
                for o, p in zip(local, x, strict=True):
                    o.state[p][name].copy_(average)
        for p in x:
            p.data.copy_(server.data)
    return {"cosine": mean(seen), "loss": float((curvature * server.detach() ** 2).sum() / 2)}


def mt_dao() -> dict[str, Any]:
    """Four workers, K = 32, a quadratic of 100 dimensions with noise of deviation 1."""
    return {
        "local ADOPT (b = 0.9, all averaged)": alignment(0.9, 1.0, outer=False),
        "local ADOPT, Nesterov outside": alignment(0.9, 1.0, outer=True),
        "MT-DAO b = 0.99": alignment(0.99, 0.95, outer=False),
        "MT-DAO b = 0.995": alignment(0.995, 0.95, outer=False),
        "MT-DAO b = 0.999": alignment(0.999, 0.95, outer=False),
    }


PROOFS: dict[str, Any] = {"staleness": staleness, "asynchronous": asynchronous, "mt_dao": mt_dao}

if __name__ == "__main__":
    main(PROOFS, RESULTS, __doc__)
