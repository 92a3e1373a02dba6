"""The small proofs of structured methods: N:M masks, and low-rank updates in stages.

Prints them as JSON and writes benchmarks/results/proofs_sparse.json; docs/proofs.md reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from proofs import digits, main
from torch import Tensor, nn
from torch.nn.utils import prune

from polyak.memory import n_of_m
from polyak.optim import STEP, AdamW, Optimizer, chain, rules, sparsify
from polyak.optim.drivers import LowRank, PeriodicLoRA

RESULTS = Path(__file__).parent / "results" / "proofs_sparse.json"
SEEDS, STEPS, NOISE = (0, 1, 2), 300, 0.8
LR, BETAS = 3e-3, (0.9, 0.999)


def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    """Digits that are hard to read."""
    return x + NOISE * torch.randn(x.shape, generator=generator)


def masked_error(kind: str, n: int, m: int, seed: int) -> float:
    """Test error (%) of a 64-64-64-10 network trained on noisy digits, exported with its masks."""
    x, y, x_test, y_test = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    layers = sparsify(model, n, m)
    optimizer: Optimizer
    if kind.startswith("step"):
        optimizer = STEP(layers.groups(), LR, BETAS, t_max=int(float(kind.split()[1]) * STEPS))
        layers.follow(optimizer)
    elif kind == "sr_ste":
        hidden, rest = ([p for _, p in group["params"]] for group in layers.groups())
        optimizer = Optimizer(hidden, chain(rules.sr_ste(n, m), rules.adam(), rules.descend()), lr=LR, betas=BETAS)
        others = AdamW(rest, LR, BETAS, weight_decay=0.0)
        optimizer.register_step_post_hook(lambda *_: others.step())
        layers.activate()
    else:
        optimizer = AdamW(model.parameters(), LR, BETAS, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for t in range(STEPS):
        if kind == "asp" and t == STEPS // 2:  # the masks of that step, for good
            layers.export()
            for layer in (model[0], model[2]):
                prune.custom_from_mask(layer, "weight", n_of_m(layer.weight.detach(), n, m))
            optimizer = AdamW(model.parameters(), LR, BETAS, weight_decay=0.0)
        chosen = torch.randint(len(x), (64,), generator=generator)
        model.zero_grad()
        nn.functional.cross_entropy(model(noisy(x[chosen], generator)), y[chosen]).backward()
        optimizer.step()
    hard = noisy(x_test, torch.Generator().manual_seed(99))
    with torch.no_grad():
        return 100 * float((model(hard).argmax(1) != y_test).float().mean())


def step() -> dict[str, Any]:
    """Errors of dense training, ASP, SR-STE and STEP, mean of three seeds."""
    kinds = ("dense", "asp", "sr_ste", "step 0.1", "step 0.5")
    return {
        f"{n}:{m}": {kind: round(mean(masked_error(kind, n, m, seed) for seed in SEEDS), 1) for kind in kinds}
        for n, m in ((1, 8), (1, 16))
    }


def low_rank(momentum: float | None, seed: int = 0) -> float:
    """What of the distance of W to a full-rank target is left after 1,600 steps with rank 1; None is plain LoRA."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(16, 16, generator=generator)
    w, a, b = torch.zeros(16, 16), torch.randn(1, 16, generator=generator) / 4, torch.zeros(16, 1)
    a.requires_grad_()
    b.requires_grad_()
    optimizer = torch.optim.Adam([a, b], lr=0.02)
    layer = LowRank("layer", w, a, b, 1.0)
    every = None if momentum is None else 100
    periodic = PeriodicLoRA([layer], optimizer, unload_every=every, momentum=momentum or 0.0)
    for _ in range(1600):
        x = torch.randn(64, 16, generator=generator)
        optimizer.zero_grad()
        (x @ (w + b @ a - target).T).square().mean().backward()
        optimizer.step()
        periodic.step()
    return float((w + b @ a - target).detach().square().sum() / target.square().sum())


def periodic_lora() -> dict[str, float]:
    """The residual of LoRA, and of PeriodicLoRA with momenta."""
    momenta = {"lora": None, "momentum 0": 0.0, "momentum 0.1": 0.1, "momentum 0.5": 0.5}
    return {name: round(low_rank(momentum), 4) for name, momentum in momenta.items()}


PROOFS: dict[str, Callable[[], dict[str, Any]]] = {"step": step, "periodic_lora": periodic_lora}

if __name__ == "__main__":
    main(PROOFS, RESULTS, __doc__)
