"""The small proofs of averaged weights and of momentum contrast, on scikit-learn's digits.

Prints each proof's figures and writes them as JSON. The outcome is recorded whatever it is; docs/proofs.md reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from proofs import digits, main
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from polyak.teachers import EMA, HardNegativeMoCo, MoCo, Power, projection_head, reconstruct

RESULTS = Path(__file__).parent / "results" / "teacher_proofs.json"
SEEDS = range(5)
EPOCHS, NOISE = 30, 0.2  # share of the labels that are drawn anew
STEPS, LABELS = 600, 100


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Per cent of samples that a model gets right."""
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).float().mean())


def noisy_training(seed: int, averages: Any, after_step: Callable[[nn.Module, EMA, int], None]) -> None:
    """A 64-64-10 network at a constant rate of 0.5 in batches of 32, a fifth of the labels random."""
    x, y, _, _ = digits()
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(y), generator=generator) < NOISE
    y = torch.where(wrong, torch.randint(0, 10, y.shape, generator=generator), y)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ema = EMA(model, averages)
    step = 0
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(y), generator=generator).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            ema.update()
            step += 1
            after_step(model, ema, step)


def average() -> dict[str, Any]:
    """Test accuracy of the weights and of their average with decay 0.99 at the ends of the last ten epochs."""
    _, y, x_test, y_test = digits()
    per_epoch = -(-len(y) // 32)
    runs = []
    for seed in SEEDS:
        seen: list[tuple[float, float]] = []

        def watch(model: nn.Module, ema: EMA, step: int, seen: list[tuple[float, float]] = seen) -> None:
            if step % per_epoch == 0 and step // per_epoch > EPOCHS - 10:
                seen.append((accuracy(model, x_test, y_test), accuracy(ema.module, x_test, y_test)))

        noisy_training(seed, 0.99, watch)
        online, averaged = zip(*seen, strict=True)
        runs.append((mean(online), stdev(online), mean(averaged), stdev(averaged)))
    names = ("online", "online: spread over epochs", "average", "average: spread over epochs")
    figures = {name: round(mean(values), 2) for name, values in zip(names, zip(*runs, strict=True), strict=True)}
    return {**figures, "seeds won by the average": sum(r[2] > r[0] for r in runs), "seeds": len(runs)}


def posthoc() -> dict[str, Any]:
    """Relative distance of an average of width 0.07, rebuilt from stored ones of 0.05 and 0.10, to a tracked one."""
    snapshots: list[Any] = []
    end: dict[str, Tensor] = {}
    start: dict[str, Tensor] = {}

    def watch(model: nn.Module, ema: EMA, step: int) -> None:
        if step % 100 == 0:
            snapshots.extend((ema.snapshot(0), ema.snapshot(1)))
            end.update({name: x.detach().clone() for name, x in ema.averages[2].items()})
            start.update({name: x.detach().clone() for name, x in model.named_parameters()})

    noisy_training(0, [Power(0.05), Power(0.10), Power(0.07)], watch)
    rebuilt = reconstruct(snapshots, 0.07)
    return {
        "rebuilt to tracked": _distance(rebuilt, end),
        "nearest stored to tracked": _distance(dict(snapshots[-2]["tensors"]), end),
        "weights to tracked": _distance(start, end),
    }


def _distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    off = sum(float((a[name] - x).square().sum()) for name, x in b.items())
    return float(f"{(off / sum(float(x.square().sum()) for x in b.values())) ** 0.5:.2g}")


def view(x: Tensor) -> Tensor:
    """A view of each image: shifted by up to a pixel, brighter or darker, noisy, some pixels missing."""
    dy, dx = torch.randint(-1, 2, (2,)).tolist()
    x = x.view(-1, 8, 8).roll((dy, dx), (1, 2)) * (0.8 + 0.4 * torch.rand(len(x), 1, 1))
    return F.dropout(x + 0.15 * torch.randn_like(x), 0.15).flatten(1)


def probed(seed: int, kind: type[MoCo] | None, **options: Any) -> float:
    """Accuracy of a logistic regression on 100 labels over a backbone trained without labels; None is a random one."""
    x, y, x_test, y_test = digits()
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    if kind is not None:
        encoder = nn.Sequential(backbone, nn.ReLU(), projection_head(64, 32))
        moco = kind(encoder, dim=32, queue_size=512, temperature=0.2, **options)
        optimizer = torch.optim.SGD(moco.encoder.parameters(), lr=0.1, momentum=0.9)
        for _ in range(STEPS):
            batch = x[torch.randint(len(x), (64,))]
            optimizer.zero_grad()
            moco(view(batch), view(batch)).loss.backward()
            optimizer.step()
    with torch.no_grad():
        features, test = backbone(x[:LABELS]).numpy(), backbone(x_test).numpy()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(features, y[:LABELS])
    return 100 * float(classifier.score(test, y_test))


def _over_seeds(contenders: dict[str, tuple[type[MoCo] | None, dict[str, Any]]]) -> dict[str, Any]:
    found = {name: [probed(seed, kind, **options) for seed in SEEDS] for name, (kind, options) in contenders.items()}
    return {name: {"mean": round(mean(v), 2), "spread": round(stdev(v), 2)} for name, v in found.items()}


def moco() -> dict[str, Any]:
    """Does a slow key encoder help, and does pre-training beat random features?"""
    return _over_seeds(
        {"random encoder": (None, {})} | {f"momentum {m}": (MoCo, {"momentum": m}) for m in (0.0, 0.9, 0.99, 1.0)}
    )


def hard_negatives() -> dict[str, Any]:
    """Do hard negatives, a filter of false ones, and two views of the loss help?"""
    one_sided: dict[str, Any] = {"mode": "anchor", "weight_q": 1.0, "weight_k": 0.0}
    kind = HardNegativeMoCo
    return _over_seeds(
        {
            "MoCo": (MoCo, {"momentum": 0.99}),
            "hardest quarter": (kind, one_sided),
            "hardest quarter, none above 0.9": (kind, {**one_sided, "upper": 0.9}),
            "both sides": (kind, {"hard_fraction": 1.0}),
            "hardest quarter, none above 0.9, both sides": (kind, {"upper": 0.9}),
        }
    )


PROOFS = {"ema": average, "posthoc": posthoc, "moco": moco, "hard_negatives": hard_negatives}


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors here are small
    main(PROOFS, RESULTS, __doc__)
