"""The small proofs of rules of learning with a server: heterogeneous clients, and DP-BREM's robustness and privacy.

Prints one line a figure and writes them as JSON, as :mod:`benchmarks.proofs` does; docs/proofs.md reads it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from proofs import digits, main
from torch import Tensor, nn

from polyak.federated import InProcess, rules
from polyak.federated.aggregators import CenteredClipping

RESULTS = Path(__file__).parent / "results" / "proofs_federated_rules.json"
SEEDS = (0, 1)
CLIENTS, ROUNDS, STEPS, BATCH = 20, 60, 10, 16
LRS = (0.1, 0.3)
Data = dict[int | str, tuple[Tensor, Tensor]]


def dirichlet(alpha: float, seed: int) -> Data:
    """The digits of 20 clients, each class split by shares from a Dirichlet distribution; nobody is left without."""
    x, y, _, _ = digits()
    torch.manual_seed(seed)
    while True:
        owner = torch.empty(len(y), dtype=torch.long)
        for c in range(10):
            shares = torch.distributions.Dirichlet(torch.full((CLIENTS,), alpha)).sample()
            rows = (y == c).nonzero().flatten()
            owner[rows] = torch.multinomial(shares, len(rows), replacement=True)
        if len(owner.unique()) == CLIENTS:
            return {i: (x[owner == i], y[owner == i]) for i in range(CLIENTS)}


def network(seed: int) -> nn.Module:
    """64-32-10."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def accuracy(run: InProcess) -> float:
    """On the test digits."""
    _, _, x, y = digits()
    logits = torch.func.functional_call(run.gradient.model, run.state.sets["arrays"], (x,))
    return float((logits.argmax(1) == y).float().mean())


def curve(rule: rules.FederatedRule, seed: int, rounds: int = ROUNDS) -> list[float]:
    """Test accuracy behind every round; zeros from where it diverges."""
    generator = torch.Generator().manual_seed(seed)
    clients = dirichlet(0.1, seed)
    run = InProcess(rule, network(seed), clients, batch_size=BATCH, generator=generator, mode="vmap")
    found: list[float] = []
    for _ in range(rounds):
        try:
            run.round()
        except ValueError:  # every reply is beyond finite numbers
            break
        found.append(accuracy(run))
    return found + [0.0] * (rounds - len(found))


def tuned(kind: type[rules.FederatedRule], lrs: tuple[float, ...], **h: Any) -> dict[str, float]:
    """The best rate by its mean accuracy on the first seed, and the figures of all seeds there."""
    made = {lr: kind(local_lr=lr, local_steps=STEPS, **h) for lr in lrs}
    first = {lr: curve(rule, SEEDS[0]) for lr, rule in made.items()}
    best = max(lrs, key=lambda lr: mean(first[lr]))
    curves = [first[best], *(curve(made[best], seed) for seed in SEEDS[1:])]
    return {"lr": best, "mean": mean(map(mean, curves)), "last 10": mean(mean(c[-10:]) for c in curves)}


PLAIN: dict[str, Any] = {"weight_decay": 0.0, "max_norm": None}
KINDS: dict[str, tuple[type[rules.FederatedRule], dict[str, Any]]] = {
    "fedavg": (rules.FedAvg, {}), "fedavg_m": (rules.FedAvgM, {}), "scaffold": (rules.SCAFFOLD, {}),
    "scaffold_m": (rules.SCAFFOLDM, {}), "server_momentum": (rules.ServerMomentum, {}), "fedswa": (rules.FedSWA, PLAIN),
    "fedmoswa": (rules.FedMoSWA, PLAIN),
}  # fmt: skip


def heterogeneous(name: str, share: float) -> Callable[[], dict[str, Any]]:
    """A rule whose server averages models, with 4 of 20 clients a round, or all."""
    kind, h = KINDS[name]
    return lambda: tuned(kind, LRS, participation=share, **h)


def variance_reduction() -> dict[str, Any]:
    """Small local rates and a free server step; and what the usual rates do to variance reduction."""
    kinds: dict[str, type[rules.FederatedRule]] = {
        "fedavg": rules.FedAvg, "fedavg_m": rules.FedAvgM, "fedavg_m_vr": rules.FedAvgMVR,
        "scaffold_m_vr": rules.SCAFFOLDMVR,
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, kind in kinds.items():
        beta = {} if kind is rules.FedAvg else {"beta": 0.3}
        found[name] = tuned(kind, (0.003, 0.03), participation=0.2, server_lr=0.5, **beta)
    tied = curve(rules.FedAvgMVR(local_lr=0.3, server_lr=3.0, local_steps=STEPS, participation=0.2), 0)
    found["fedavg_m_vr, rates of the others"] = {"mean": mean(tied), "last 10": mean(tied[-10:])}
    return found


def brem_deviation() -> dict[str, Any]:
    """How far a liar may be off and still be within the honest diameter (min-max), and what it does to an aggregate."""
    honest, liars, d, rounds = 16, 4, 100, 200
    found: dict[str, Any] = {}
    for beta in (0.0, 0.9):
        generator = torch.Generator().manual_seed(0)
        phi, center, lengths, biases = torch.zeros(honest, d), torch.zeros(d), [], []
        for t in range(rounds):
            phi = beta * phi + (1 - beta) * (1 + torch.randn(honest, d, generator=generator))
            middle, dev = phi.mean(0), phi.std(0)
            length = _allowed(phi, middle, dev)
            lie = middle - length * dev / dev.norm()
            center = CenteredClipping(tau=2.0).around(torch.cat([phi, lie.expand(liars, -1)]), center)
            if t >= rounds // 2:
                lengths.append(length)
                biases.append(float((center - 1).norm()))
        found[f"momentum {beta}"] = {"deviation": mean(lengths), "bias": mean(biases)}
    found["ratio"] = found["momentum 0.9"]["deviation"] / found["momentum 0.0"]["deviation"]
    return {**found, "predicted ratio": math.sqrt(0.1 / 1.9)}


def _allowed(rows: Tensor, middle: Tensor, dev: Tensor) -> float:
    """The largest distance along a direction from the mean that is no farther from any row than two rows are."""
    unit, off = dev / dev.norm(), middle - rows
    slopes = off @ unit
    room = torch.pdist(rows).max().square() - off.square().sum(1) + slopes.square()
    return float((slopes + room.clamp(min=0).sqrt()).min())


def brem_privacy() -> dict[str, Any]:
    """Digits under growing noise, and what a record's privacy costs by the size of its client."""
    x, y, _, _ = digits()
    generator = torch.Generator().manual_seed(0)
    parts = torch.randperm(len(y), generator=generator).tensor_split(CLIENTS)
    found: dict[str, Any] = {}
    for sigma in (0.0, 0.05, 0.15):
        h = {"lr": 0.5, "rounds": 150, "sample_rate": 0.2, "max_grad_norm": 1.0, "client_clip": 0.5}
        rule = rules.DPBREM(**h, noise_multiplier=sigma)
        run = InProcess(rule, network(0), {i: (x[p], y[p]) for i, p in enumerate(parts)}, generator=generator)
        run.run(rule.rounds)
        found[f"noise {sigma}"] = {"accuracy": accuracy(run)}
        for how in ("worst_case", "per_round") if sigma else ():
            found[f"noise {sigma}"] |= {f"epsilon {how}, {n}": rule.epsilon(n, 1e-3, run.state, how) for n in (65, 650)}
    return found


def speed() -> dict[str, float]:
    """Seconds of a round of 1,000 clients, 99,450 weights, 5 local steps on 10 records."""
    model = nn.Sequential(nn.Linear(784, 120), nn.ReLU(), nn.Linear(120, 40), nn.ReLU(), nn.Linear(40, 10))
    generator = torch.Generator().manual_seed(0)
    clients: Data = {
        i: (torch.randn(40, 784, generator=generator), torch.randint(10, (40,), generator=generator))
        for i in range(1000)
    }
    found = {}
    for name in ("fedavg", "scaffold_m"):
        run = InProcess(rules.get(name)(local_steps=5), model, clients, batch_size=10, mode="vmap")
        run.round()
        wall, cpu = time.perf_counter(), time.process_time()
        run.round()
        found |= {f"{name}, seconds": time.perf_counter() - wall, f"{name}, CPU seconds": time.process_time() - cpu}
    return {**found, "threads": torch.get_num_threads()}


PROOFS: dict[str, Callable[[], dict[str, Any]]] = {
    **{f"{name} {share:.0%}": heterogeneous(name, share) for share in (0.2, 1.0) for name in KINDS},
    "variance_reduction": variance_reduction,
    "brem_deviation": brem_deviation,
    "brem_privacy": brem_privacy,
    "speed": speed,
}

if __name__ == "__main__":
    main(PROOFS, RESULTS, __doc__)
