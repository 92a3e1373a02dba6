"""The small proofs of the solvers, as in proofs.py: printed, and written as JSON whatever they show."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from proofs import digits, main
from polyak.optim.solvers import DBFNewton

RESULTS = Path(__file__).parent / "results" / "proofs_solvers.json"


def _newton_run(
    loss: Callable[[Tensor, Tensor], Tensor], rows: list[Tensor], best: Tensor, filtered: bool, **options: Any
) -> dict[str, float]:
    """Distance to the optimum, angle to it and length of the steps, over the last two thirds of a run."""
    p = nn.Parameter(torch.zeros_like(best))
    optimizer = DBFNewton([p], **options)
    distances, lengths, angles = [], [], []
    for batch in rows:
        if not filtered:
            optimizer = DBFNewton([p], **options)
        before = p.detach().clone()
        optimizer.step(lambda batch=batch: loss(p, batch))
        move, wanted = p.detach() - before, best - before
        distances.append(float((p.detach() - best).norm()))
        lengths.append(float(move.norm()))
        angles.append(math.degrees(math.acos(min(1.0, max(-1.0, float(torch.cosine_similarity(move, wanted, dim=0)))))))
    late = len(rows) // 3
    return {name: mean(v[late:]) for name, v in (("distance", distances), ("step", lengths), ("angle", angles))}


def dbf_newton() -> dict[str, Any]:
    """Filtered against unfiltered stochastic Newton, batches of 5: least squares, and digits 0 against 1."""
    found: dict[str, Any] = {}
    for name, filtered in (("filtered", True), ("unfiltered", False)):
        runs = [_least_squares(seed, filtered) for seed in range(50)]
        found[f"least squares, {name}"] = {key: mean(run[key] for run in runs) for key in runs[0]}
        runs = [_logistic(seed, filtered) for seed in range(10)]
        found[f"digits, {name}"] = {key: mean(run[key] for run in runs) for key in runs[0]}
    return found


def _least_squares(seed: int, filtered: bool) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(100, 2, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(2, generator=generator, dtype=torch.float64)
    y = y + torch.randn(100, generator=generator, dtype=torch.float64)
    best = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    rows = [torch.randperm(100, generator=generator)[:5] for _ in range(30)]
    return _newton_run(lambda p, batch: 0.5 * (y[batch] - x[batch] @ p).square().mean(), rows, best, filtered)


def _logistic(seed: int, filtered: bool) -> dict[str, float]:
    """10 principal components of the digits 0 and 1, with a little weight decay."""
    x, labels = digits()[:2]
    x, labels = x[labels < 2], labels[labels < 2]
    x = torch.tensor(PCA(10, whiten=True, random_state=0).fit_transform(x.numpy()), dtype=torch.float64)
    y = labels.double()

    def loss(p: Tensor, rows: Any) -> Tensor:
        fit = nn.functional.binary_cross_entropy_with_logits(x[rows] @ p, y[rows])
        return fit + 0.01 * p.square().sum()

    best = nn.Parameter(torch.zeros(10, dtype=torch.float64))
    for _ in range(30):
        DBFNewton([best], armijo_c=0.25).step(lambda: loss(best, slice(None)))
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(len(x), generator=generator)[:5] for _ in range(60)]
    return _newton_run(loss, rows, best.detach(), filtered)


PROOFS: dict[str, Callable[[], dict[str, Any]]] = {"dbf_newton": dbf_newton}


if __name__ == "__main__":
    main(PROOFS, RESULTS, __doc__)
