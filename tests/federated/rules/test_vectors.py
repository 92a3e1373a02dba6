"""Recorded vectors of rules with a server are recomputed, and others of the same kinds, transcribed here in NumPy."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.recording import Arrays, draw, put, reproduced
from tests.reproduce.vector import RECORDED, Vector, names_in

KINDS = ("fedavg-m", "fedswa", "dp-accounting")


@pytest.mark.parametrize("name", names_in(RECORDED, *KINDS))
def test_recorded(name):
    reproduced(Vector(RECORDED, name))


@pytest.mark.parametrize("name", names_in(RECORDED, "dp-brem"))
def test_recorded_with_attacks(name):
    pytest.importorskip("polyak.federated.attacks")
    reproduced(Vector(RECORDED, name))


def problem(classes: int, features: int, clients: int, steps: int, batch: int, chosen: list[list[int]]) -> Arrays:
    """Softmax regression, weight and bias as one matrix with a feature of ones."""
    labels = np.random.default_rng(5).integers(0, classes, (clients, steps, batch))
    start = draw(0, classes, features + 1)
    return {
        "in/W0": start[:, :-1], "in/b0": start[:, -1], "in/x": 3 * draw(1, clients, steps, batch, features),
        "in/y": labels, "in/selected": np.array(chosen),
    }  # fmt: skip


def clipped(w: np.ndarray, x: np.ndarray, y: np.ndarray, limit: float) -> np.ndarray:
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    logits = x @ w.T
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    g = (p - np.eye(len(w))[y]).T @ x / len(x)
    return g * min(1, limit / (np.linalg.norm(g) + 1e-6))


def start_of(inputs: Arrays) -> np.ndarray:
    return np.concatenate([inputs["in/W0"], inputs["in/b0"][:, None]], 1)


def split(prefix: str, memory: str, rounds: list[np.ndarray]) -> Arrays:
    whole = np.stack(rounds)
    return {f"{prefix}{memory}weight": whole[..., :-1], f"{prefix}{memory}bias": whole[..., -1]}


def test_fedcm_of_other_sizes(tmp_path):
    beta, lr, decay, limit, steps = 0.3, 0.07, 0.05, 0.9, 3
    inputs = problem(4, 5, 5, steps, 7, [[0, 3, 4], [1, 2, 3], [0, 1, 4], [2, 3, 4]])
    w, g, went, memories = start_of(inputs), 0.0, [], []
    for chosen in inputs["in/selected"]:
        ends = []
        for i in chosen:
            y = w
            for x, label in zip(inputs["in/x"][i], inputs["in/y"][i], strict=True):
                y = y - lr * (beta * clipped(y, x, label, limit) + (1 - beta) * g + decay * y)
            ends.append(y)
        g = (w - np.mean(ends, 0)) / (lr * steps)
        w = np.mean(ends, 0)
        went.append(w)
        memories.append(g)
    h = {"beta": beta, "local_steps": steps, "lr": lr, "max_norm": limit, "server_lr": "lr*K", "weight_decay": decay}
    manifest = {"rule": "fedavg-m", "variant": "fedcm", "kind": "cases", "hyperparameters": h}
    arrays = {**inputs, **split("out/", "", went), **split("out/", "g_", memories)}
    reproduced(put(tmp_path, "other", manifest, arrays))


def test_fedswa_of_other_sizes(tmp_path):
    alpha, gamma, lr, rho, steps = 1.2, 0.35, 0.11, 0.4, 4
    inputs = problem(3, 2, 3, steps, 5, [[0, 1], [1, 2], [0, 2], [0, 1], [1, 2]])

    def run(corrected: bool, keep: Callable[[np.ndarray, np.ndarray, np.ndarray], None]) -> None:
        w = start_of(inputs)
        m, c = np.zeros_like(w), np.zeros((3, *w.shape))
        for t, chosen in enumerate(inputs["in/selected"]):
            ends, changes = [], []
            for i in chosen:
                y = w
                for k, (x, label) in enumerate(zip(inputs["in/x"][i], inputs["in/y"][i], strict=True)):
                    eta = lr * (1 - k / steps) + rho * lr * k / steps
                    y = y - eta * (clipped(y, x, label, 2.0) + 0.02 * y)
                    y = y - eta * (m - c[i]) * corrected
                ends.append(y)
                c[i] = c[i] - m + (w - y) / (steps * (lr + rho * lr) / 2)
                changes.append(c[i] - m)
            w = w + alpha * (np.mean(ends, 0) - w)
            m = m + (1 if t == 0 else gamma) * np.mean(changes, 0)
            keep(w, m, c.copy())

    plain: list[np.ndarray] = []
    moving: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    run(False, lambda w, m, c: plain.append(w))
    run(True, lambda w, m, c: moving.append((w, m, c)))
    weights, servers, clients = (list(some) for some in zip(*moving, strict=True))
    arrays = {**inputs, **split("out/fedswa/", "", plain), **split("out/fedmoswa/", "", weights)}
    arrays |= {**split("out/fedmoswa/", "m_", servers), **split("out/fedmoswa/", "c_", clients)}
    h = {
        "B": 5,
        "K": steps,
        "N": 3,
        "S": 2,
        "T": 5,
        "alpha": alpha,
        "c": 3,
        "d": 2,
        "gamma": gamma,
        "lr": lr,
        "rho": rho,
    }
    notes = "coupled weight decay 2e-2 and global grad-norm clip 2 (of the data gradient) are fixed in the code"
    manifest = {"rule": "fedswa", "kind": "cases", "hyperparameters": {**h, "seed": 1}, "notes": notes}
    reproduced(put(tmp_path, "other", manifest, arrays))
