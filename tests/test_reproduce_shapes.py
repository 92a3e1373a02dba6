"""The tool follows manifest and arrays: vectors of several tasks and of two levels, of other numbers and shapes."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional as F

from tests.recording import Arrays, draw, put, reproduced


@pytest.mark.parametrize("mode", ["mean", "any"])
def test_samgs(tmp_path, mode):
    h = {"beta1": 0.8, "beta2": 0.9, "gamma": 0.85}
    arrays: Arrays = {}
    for case, (steps, entries, tasks) in enumerate([(4, 3, 2), (6, 8, 5)]):
        gradients = draw(case, steps, entries, tasks)
        m, v, went = np.zeros((entries, tasks)), 0.0, {"g": [], "m": [], "v": []}
        for t, w in enumerate(gradients, 1):
            n = np.linalg.norm(w, axis=0)
            pairs = [2 * n[i] * n[j] / (n[i] ** 2 + n[j] ** 2) for i in range(tasks) for j in range(i)]
            m, v = 0.8 * m + 0.2 * w, 0.9 * v + 0.1 * (1 - np.mean(pairs)) ** 2 + 1e-8
            if (np.mean(pairs) if mode == "mean" else np.min(pairs)) < h["gamma"]:
                g = (w / n).sum(1) * n.mean()
            else:
                g = (w * np.abs(m / (1 - 0.8**t))).sum(1) / np.sqrt(v / (1 - 0.9**t))
            for name, value in zip(went, (g, m, v), strict=True):
                went[name].append(value)
        arrays[f"case{case}/in/grads"] = gradients
        arrays |= {f"case{case}/out/{name}": np.stack(values) for name, values in went.items()}
    reproduced(put(tmp_path, "tasks", {"rule": "samgs", "variant": f"{mode} of pairs", "hyperparameters": h}, arrays))


def test_pcgrad(tmp_path):
    arrays: Arrays = {}
    for case in range(4):
        a, b = draw(case, 2, 5)
        dot = min(a @ b, 0.0)
        arrays[f"case{case}/in/grads"] = np.stack([a, b])
        arrays[f"case{case}/out/pcgrad_sum"] = a - dot / (b @ b) * b + b - dot / (a @ a) * a
    reproduced(put(tmp_path, "two", {"rule": "pcgrad", "hyperparameters": {}}, arrays))


def test_cagrad(tmp_path):
    c, arrays = 0.7, {}
    for case, tasks in enumerate((2, 3, 6)):
        rows = draw(case, tasks, 9)
        gram, norm = rows @ rows.T, np.sqrt((rows @ rows.T).mean() + 1e-8)

        def objective(w, gram=gram, norm=norm):
            return w @ gram.mean(1) + c * norm * np.sqrt(w @ gram @ w + 1e-8)

        start, whole = np.full(tasks, 1 / tasks), {"type": "eq", "fun": lambda w: w.sum() - 1}
        w = minimize(objective, start, bounds=[(0, 1)] * tasks, constraints=whole, options={"ftol": 1e-15}).x
        g = rows.mean(0) + c * norm * w @ rows / (np.linalg.norm(w @ rows) + 1e-8)
        arrays |= {f"case{case}/in/grads": rows, f"case{case}/out/w": w, f"case{case}/out/g_rescale0": g}
        arrays |= {f"case{case}/out/g_rescale1": g / (1 + c**2), f"case{case}/out/g_rescale2": g / (1 + c)}
    manifest = {"rule": "cagrad", "hyperparameters": {"c": c}, "notes": "compare with tolerance 1e-4"}
    reproduced(put(tmp_path, "simplex", manifest, arrays))


def test_bo_rep(tmp_path):
    h = {"beta": 0.7, "inner_lr": 0.3, "inner_steps": 2, "interval": 2, "nu": 0.05, "outer_lr": 0.02}
    steps, rows, entries, classes = 5, 6, 3, 2
    arrays = {
        "in/w0": draw(0, classes, entries),
        "in/b0": draw(1, classes),
        "in/z0": draw(2, classes * (entries + 1), 1),
    }
    arrays |= {f"in/X{s}": draw(i, steps, rows, entries) for i, s in ((3, "s"), (4, "q"))}
    arrays |= {f"in/Y{s}": (draw(i, steps, rows) > 0).astype(np.int64) for i, s in ((5, "s"), (6, "q"))}
    given = {name: torch.from_numpy(value) for name, value in arrays.items()}
    y = torch.cat([given["in/w0"].flatten(), given["in/b0"]])
    z, strength, m = given["in/z0"].flatten(), torch.zeros(1).double(), torch.zeros(1).double()
    went: dict[str, list[torch.Tensor]] = {"lambda": [], "z": [], "w": [], "momentum": []}
    for t in range(steps):

        def loss(y, strength, batch, t=t):
            logits = given[f"in/X{batch}"][t] @ y[: classes * entries].view(classes, entries).T + y[classes * entries :]
            return F.cross_entropy(logits, given[f"in/Y{batch}"][t]) + (strength / 2 * y.norm()).sum()

        slope = torch.func.grad(loss)
        if t % h["interval"] == 0:
            for _ in range(h["inner_steps"]):
                y = y - h["inner_lr"] * slope(y, strength, "s")
        z = z - h["nu"] * (torch.func.hessian(loss)(y, strength, "s") @ z - slope(y, torch.zeros(1).double(), "q"))
        m = h["beta"] * m - (1 - h["beta"]) * (y / y.norm() / 2) @ z
        strength = strength - h["outer_lr"] * m / (m.norm() + 1e-10)
        now = (strength[0], z[:, None], y[: classes * entries].view(classes, entries), m[0])
        for name, value in zip(went, now, strict=True):
            went[name].append(value)
    arrays |= {f"out/{name}": torch.stack(values).numpy() for name, values in went.items()}
    reproduced(put(tmp_path, "levels", {"rule": "bo-rep", "hyperparameters": h}, arrays))
