"""The small proof of the contribution ledger: who is paid, by measure; and what a ledger costs.

As :mod:`proofs`: one line a figure, written as JSON; the outcome is recorded whatever it is.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import proofs
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from polyak.federated.ledger import (
    Alignment,
    LeaveOneOut,
    Ledger,
    LossGain,
    RewardRule,
    Shapley,
    Terms,
    commitment,
    hash_tensors,
    verify,
)

RESULTS = Path(__file__).parent / "results" / "proofs_ledger.json"
AGENTS = ("big 1", "big 2", "small 1", "small 2", "noisy", "rider")
QUALITY = (4, 4, 3, 3, 2, 1)
MEASURES = {
    "shapley": Shapley(),
    "shapley, all orders": Shapley(exact=True),
    "leave_one_out": LeaveOneOut(),
    "loss_gain": LossGain(),
    "alignment": Alignment(),
}
ROUNDS, POOL, LR, LOCAL = 20, 100_000, 0.5, 5


def _data(seed: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor, Tensor, Tensor]:
    """Shares of the agents: two whole, two of a fifth, one with half of its labels drawn, one empty."""
    x, y, x_test, y_test = proofs.digits()
    draws = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=draws)
    valid, rest = order[:200], order[200:].split(-(-(len(order) - 200) // 5))
    shares = [(x[rows], y[rows].clone()) for rows in rest]
    shares[2:4] = [(a[: len(a) // 5], b[: len(b) // 5]) for a, b in shares[2:4]]
    labels = shares[4][1]
    wrong = torch.rand(len(labels), generator=draws) < 0.5
    labels[wrong] = torch.randint(10, (int(wrong.sum()),), generator=draws)
    return shares, x[valid], y[valid], x_test, y_test


def _loss(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    matrix = weights.view(10, 65)
    return nn.functional.cross_entropy(x @ matrix[:, :64].T + matrix[:, 64], y)


def _local(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The update after some full-batch steps on the agent's own data."""
    moved = weights.clone().requires_grad_()
    for _ in range(LOCAL):
        (gradient,) = torch.autograd.grad(_loss(moved, x, y), moved)
        moved = (moved - LR * gradient).detach().requires_grad_()
    return moved.detach() - weights


def _round(book: Ledger, updates: Tensor, contributed: list[float], model: Tensor) -> None:
    hashes = {name: hash_tensors({"update": row}) for name, row in zip(AGENTS, updates, strict=True)}
    salts = {name: secrets.token_hex(32) for name in AGENTS}
    if not book.state.members:
        for name in AGENTS:
            book.register(name)
    book.close()
    for name in AGENTS:
        book.commit(name, commitment(hashes[name], salts[name]))
    book.close()
    for name in AGENTS:
        book.reveal(name, hashes[name], salts[name])
    book.close()
    book.aggregate(hash_tensors({"model": model}), hashes)
    book.evaluate("evaluator", dict(zip(AGENTS, contributed, strict=True)))
    book.close()
    book.reward()


def _paid(measure: str, rider: str, seed: int, folder: Path) -> dict[str, float]:
    shares, x_valid, y_valid, x_test, y_test = _data(seed)
    terms = Terms("sponsor", "aggregator", ("evaluator",), POOL, ROUNDS, measure=measure, rule=RewardRule())
    book = Ledger.create(folder / f"{measure}-{rider}-{seed}.db", terms)
    draws = torch.Generator().manual_seed(seed)
    weights = torch.zeros(650)
    for _ in range(ROUNDS):
        honest = [_local(weights, *share) for share in shares]
        noise = torch.randn(650, generator=draws) * honest[0].norm() / 650**0.5
        updates = torch.stack([*honest, noise if rider == "noise" else torch.zeros(650)])
        start = weights
        contributed = MEASURES[measure](
            updates, lambda moved, at=start: float(_loss(at + moved, x_valid, y_valid)), generator=draws
        )
        weights = weights + updates.mean(0)
        _round(book, updates, contributed.tolist(), weights)
    balances = verify(book.path, str(book.head)).state.balances
    accuracy = float(
        ((x_test @ weights.view(10, 65)[:, :64].T + weights.view(10, 65)[:, 64]).argmax(1) == y_test).double().mean()
    )
    correlation = float(spearmanr([balances[name] for name in AGENTS], QUALITY).statistic)
    return {name: balances[name] / POOL for name in AGENTS} | {"spearman": correlation, "accuracy": 100 * accuracy}


def payments() -> dict[str, Any]:
    """Shares of the pool after 20 rounds on digits, and their rank correlation with the quality of the data."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for measure in MEASURES:
            for rider in ("zero", "noise"):
                runs = [_paid(measure, rider, seed, Path(folder)) for seed in proofs.SEEDS]
                found[f"{measure}, rider sends {rider}"] = {k: round(mean(r[k] for r in runs), 4) for k in runs[0]}
    return found


def cost() -> dict[str, Any]:
    """What an append and a verification take, in milliseconds; bytes of the file an entry."""
    with tempfile.TemporaryDirectory() as folder:
        book = Ledger.create(Path(folder) / "ledger.db", Terms("s", "a", ("e",), 0, 1))
        start = time.perf_counter()
        for k in range(500):
            book.register(f"agent {k}")
        append = (time.perf_counter() - start) / 500
        start = time.perf_counter()
        verify(book.path)
        read = (time.perf_counter() - start) / 500
        size = book.path.stat().st_size / 500
    return {"append, ms": round(1e3 * append, 3), "verify, ms an entry": round(1e3 * read, 4), "bytes an entry": size}


PROOFS = {"payments": payments, "cost": cost}

if __name__ == "__main__":
    proofs.main(PROOFS, RESULTS, __doc__)
