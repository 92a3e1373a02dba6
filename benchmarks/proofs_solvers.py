"""The small proofs of solvers, lenses and pruning, as in proofs.py: printed, and written as JSON whatever they show."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from proofs import digits, main
from sklearn.datasets import load_iris, make_moons
from sklearn.decomposition import PCA
from torch import Tensor, nn

from polyak.optim import GSM, lenses
from polyak.optim.solvers import GLFISTA, DBFNewton, Grid, knn_laplacian

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


def gl_fista() -> dict[str, Any]:
    """Two moons with 12 labels: systems to within 0.1 % of the energy's fall; and a shrinking disc on a grid."""
    points, side = make_moons(600, noise=0.12, random_state=0)
    generator = torch.Generator().manual_seed(0)
    chosen = [(torch.tensor(side) == c).nonzero()[:, 0] for c in (0, 1)]
    labelled = torch.cat([c[torch.randperm(len(c), generator=generator)[:6]] for c in chosen])
    truth = 2.0 * torch.tensor(side, dtype=torch.float64) - 1
    graph = knn_laplacian(torch.tensor(points), 10)
    best = GLFISTA(steps=1_000, tol=0.0).minimize(graph, labelled, truth[labelled]).energies[-1]
    found: dict[str, Any] = {}
    for tau in (10.0, 1.0, 0.1):
        for name, momentum in (("0", 0.0), ("0.5", 0.5), ("0.8", 0.8), ("k / (k + 3), restarts", None)):
            solver = GLFISTA(tau=tau, momentum=momentum, restart=momentum is None, tol=0.0)
            ran = solver.minimize(graph, labelled, truth[labelled])
            limit = best + 1e-3 * (ran.energies[0] - best)
            steps = next((k for k, e in enumerate(ran.energies) if e <= limit), None)
            accuracy = float((ran.u.sign() == truth).double().mean())
            found[f"tau {tau:g}, momentum {name}"] = {"systems": steps, "accuracy": accuracy}
    for momentum in (0.0, 0.8):
        for factor in (0.5, 1, 2, 20):
            found[f"disc, momentum {momentum}, tau {factor:g} eps/split"] = _disc(momentum, factor)
    return found


def _disc(momentum: float, factor: float) -> list[float]:
    """The area of a disc of radius 0.3 in a unit square, every 5 steps."""
    n, epsilon = 128, 0.03
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5
    start = torch.tanh((0.3 - (x[:, None] ** 2 + x**2).sqrt()) / (2**0.5 * epsilon))
    solver = GLFISTA(epsilon=epsilon, tau=factor * epsilon / 2, momentum=momentum, restart=False, fidelity=0.0)
    iterates = islice(solver.iterate(solver.energy(Grid((n, n), 1 / n)), start), 0, 26, 5)
    return [round(float((i.u > 0).double().mean()), 4) for i in iterates]


def lens_learner() -> dict[str, Any]:
    """Iris by two dense layers, made of lenses, one example a step, 15 epochs at lr 0.1: train accuracy (%)."""
    data = load_iris()
    x = torch.tensor(data.data - data.data.mean(0), dtype=torch.float64)
    y = nn.functional.one_hot(torch.tensor(data.target)).double()
    model = lenses.dense() >> lenses.dense()
    found = {}
    for name, optimiser in (
        ("ascent", lenses.ascent()),
        ("momentum 0.9", lenses.ascent_momentum(0.9)),
        ("nesterov 0.9", lenses.nesterov(0.9)),
        ("momentum 0.9 for the last layer alone", lenses.ascent_momentum(0.9) @ lenses.ascent()),
    ):
        generator = torch.Generator().manual_seed(0)
        w1, w2 = (torch.randn(s, generator=generator, dtype=torch.float64) / s[1] ** 0.5 for s in ((20, 4), (3, 20)))
        learner = lenses.Learner(model, optimiser, lenses.squared_error(), lenses.learning_rate(0.1))
        wire = learner.start(((None, (y.new_zeros(3), w2)), (None, (y.new_zeros(20), w1))))
        for _ in range(15):
            for i in torch.randperm(len(x), generator=generator):
                wire = learner.step(y[i], wire, x[i])
        right = [int(learner.predict(wire, a).argmax()) == int(b.argmax()) for a, b in zip(x, y, strict=True)]
        found[name] = 100 * mean(right)
    return found


def gsm() -> dict[str, Any]:
    """Digits with noise, a trained 64-100-60-10 network at 10 and 20 times fewer weights: test error (%) of one-shot
    magnitude pruning and of 1,200 steps of GSM, two seeds; of GSM also with a decay that is too small for it."""
    found: dict[str, Any] = {"dense": [round(_test_error(_trained(seed)), 1) for seed in (0, 1)]}
    for ratio in (0.1, 0.05):
        found[f"one-shot, ratio {ratio}"] = [_pruned(seed, ratio, steps=0) for seed in (0, 1)]
        found[f"gsm, ratio {ratio}"] = [_pruned(seed, ratio, steps=1_200) for seed in (0, 1)]
    found["gsm, ratio 0.1, weight decay 1e-3"] = [_pruned(seed, 0.1, 1_200, weight_decay=1e-3) for seed in (0, 1)]
    return found


def _batches(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int) -> None:
    x, y, _, _ = digits()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(x), (64,), generator=generator)
        noisy = x[chosen] + 0.3 * torch.randn(64, 64, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(noisy), y[chosen]).backward()
        optimizer.step()


@functools.cache
def _weights(seed: int) -> dict[str, Tensor]:
    model = _network(seed)
    _batches(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), seed, 1_500)
    return model.state_dict()


def _network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 60), nn.ReLU(), nn.Linear(60, 10))


def _trained(seed: int) -> nn.Module:
    model = _network(seed)
    model.load_state_dict(_weights(seed))
    return model


def _test_error(model: nn.Module) -> float:
    _, _, x, y = digits()
    noisy = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return 100 * float((model(noisy).argmax(1) != y).float().mean())


def _pruned(seed: int, ratio: float, steps: int, weight_decay: float = 8e-3) -> dict[str, Any]:
    """Test error after pruning, and the share that each layer keeps."""
    model = _trained(seed)
    optimizer = GSM(
        model.parameters(), lr=0.02, momentum=0.98, weight_decay=weight_decay, nonzero_ratio=ratio, execution="eager"
    )  # fmt: skip
    _batches(model, optimizer, seed + 10, steps)
    kept = [round(float(mask.double().mean()), 2) for mask in optimizer.prune() if mask.ndim == 2]
    return {"error": round(_test_error(model), 1), "kept": kept}


PROOFS: dict[str, Callable[[], dict[str, Any]]] = {
    "dbf_newton": dbf_newton,
    "gl_fista": gl_fista,
    "lenses": lens_learner,
    "gsm": gsm,
}


if __name__ == "__main__":
    main(PROOFS, RESULTS, __doc__)
