"""The small proof of MoNNA: digits on 11 peers, two of them liars, under four attacks with four rules.

Prints one line a figure and writes them as JSON, as :mod:`benchmarks.proofs` does; docs/proofs.md reads it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from _federated_report import picture
from proofs import digits, main
from torch import Tensor, nn
from torch.nn import functional as F

from polyak.federated import MoNNA, SimulatedPeers, attacks
from polyak.federated.aggregators import Aggregator, CenteredClipping, Mean, TrimmedMean
from polyak.federated.attacks import Attack

RESULTS = Path(__file__).parent / "results" / "proofs_federated.json"
SEEDS = (0, 1)
WORKERS, LIARS, BATCH, STEPS, LR = 11, 2, 25, 200, 0.5
ATTACKS: dict[str, Attack] = {
    "ALIE": attacks.ALIE(1.5),
    "FOE": attacks.FOE(1.1),
    "SF": attacks.SignFlip(),
    "LF": attacks.LabelFlip(),
}
CASES: dict[str, tuple[float, Aggregator | None]] = {
    "NNA, momentum .9": (0.9, None),
    "NNA, no momentum": (0.0, None),
    "CWTM, momentum .9": (0.9, TrimmedMean(LIARS)),
    "CWTM, no momentum": (0.0, TrimmedMean(LIARS)),
    "SCC, momentum .9": (0.9, CenteredClipping(1.0, 3, pivot=0)),
    "mean, momentum .9": (0.9, Mean()),
}


def shares(y: Tensor, workers: int, concentration: float, seed: int) -> list[Tensor]:
    """The samples of each worker: of every class shares drawn from a Dirichlet distribution."""
    torch.manual_seed(seed)
    dirichlet = torch.distributions.Dirichlet(torch.full((workers,), concentration))
    found: list[list[Tensor]] = [[] for _ in range(workers)]
    for label in y.unique():
        own = (y == label).nonzero().flatten()
        ends = (dirichlet.sample().cumsum(0) * len(own)).round().long().tolist()[:-1]
        for held, part in zip(found, own[torch.randperm(len(own))].tensor_split(ends), strict=True):
            held.append(part)
    return [torch.cat(parts) for parts in found]


def accuracy(
    momentum: float, rule: Aggregator | None, attack: Attack | None, seed: int, concentration: float
) -> tuple[float, float]:
    """Test accuracy after training, the mean and the least of the honest peers."""
    x, y, x_test, y_test = digits()
    x, x_test = (x - x.mean()) / x.std(), (x_test - x.mean()) / x.std()
    method = MoNNA(LR, momentum, LIARS, rule=rule)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    generator = torch.Generator().manual_seed(seed)
    peers = SimulatedPeers(model, F.cross_entropy, WORKERS, method, attack, generator=generator, classes=10)
    held = shares(y, peers.honest, concentration, seed)
    drawn = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        chosen = torch.stack([own[torch.randint(len(own), (BATCH,), generator=drawn)] for own in held])
        peers.step(x[chosen], y[chosen])
    right = (peers.outputs(x_test).argmax(-1) == y_test).double().mean(1)
    return float(right.mean()), float(right.min())


def monna(concentration: float = 1.0) -> dict[str, Any]:
    """Every rule under every attack, and the plain mean without one."""
    found: dict[str, Any] = {}
    for case, (momentum, rule) in CASES.items():
        for name, attack in ATTACKS.items():
            runs = [accuracy(momentum, rule, attack, seed, concentration) for seed in SEEDS]
            found.setdefault(case, {})[name] = {"mean": mean(r[0] for r in runs), "least": min(r[1] for r in runs)}
        print(case, {name: round(value["mean"], 3) for name, value in found[case].items()}, flush=True)
    clean = [accuracy(0.9, Mean(), None, seed, concentration) for seed in SEEDS]
    found["mean, nobody lies"] = {"mean": mean(r[0] for r in clean), "least": min(r[1] for r in clean)}
    return found


PROOFS: dict[str, Callable[[], Any]] = {"monna": monna, "monna, Dirichlet(0.3)": lambda: monna(0.3)}

if __name__ == "__main__":
    warnings.simplefilter("error")
    main(PROOFS, RESULTS, __doc__)
    caption = f"Test accuracy on digits, {WORKERS} peers, {LIARS} of them liars"
    RESULTS.with_suffix(".svg").write_text(picture(json.loads(RESULTS.read_text())["monna"], caption))
