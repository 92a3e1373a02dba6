"""The tool follows manifest and arrays: vectors of other numbers, names, shapes, lengths and dtypes, made here.

Each is written by a transcription of its source that shares nothing with the package.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.recording import SHAPES, Arrays, common, draw, put, reproduced
from tests.reproduce import averages

KEYS = "Online model: theta_0 = p0, theta_{t+1} = theta_t - 0.03*grad_t (golden inputs)"


def by_torch(inputs: Arrays, steps: int, make: Any, dtype: torch.dtype = torch.float64) -> Arrays:
    """A trajectory of one of torch's optimizers."""
    params = {n: torch.nn.Parameter(torch.tensor(inputs[f"p0/{n}"], dtype=dtype)) for n in SHAPES}
    optimizer, went = make(params), {n: [] for n in SHAPES}
    for t in range(steps):
        for n, p in params.items():
            p.grad = torch.tensor(inputs[f"g/{n}"][t], dtype=dtype)
        optimizer.step()
        for n, p in params.items():
            went[n].append(p.detach().numpy().copy())
    return {f"p/{n}": np.stack(values) for n, values in went.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("execution", ["eager", "batched"])
def test_optimizers(tmp_path, dtype, execution):
    inputs, name = common(tmp_path), str(dtype).removeprefix("torch.")
    adamw = {"lr": 0.03, "betas": [0.7, 0.93], "eps": 1e-3, "weight_decay": 0.2}
    sgd = {"lr": 0.07, "momentum": 0.6, "nesterov": True, "weight_decay": 0.1, "foreach": True}
    runs = {
        "adamw": (adamw, lambda ps: torch.optim.AdamW(ps.values(), **adamw), 9),
        "nesterov": (sgd, lambda ps: torch.optim.SGD(ps.values(), **sgd), 5),
    }
    for variant, (h, make, steps) in runs.items():
        manifest = {"rule": "reality-check", "variant": variant, "hyperparameters": h, "steps": steps, "dtype": name}
        reproduced(put(tmp_path, variant, manifest, by_torch(inputs, steps, make, dtype)), execution)


@pytest.mark.parametrize("fn", [None, "original", "match_rms_adamw"])
def test_muon_of_torch_with_either_scale(tmp_path, fn):
    h = {"adjust_lr_fn": fn, "eps": 1e-6, "lr": 0.05, "momentum": 0.8, "nesterov": False, "ns_steps": 4,
         "weight_decay": 0.1}  # fmt: skip
    matrices = [n for n, shape in SHAPES.items() if len(shape) == 2]
    went = by_torch(common(tmp_path), 6, lambda ps: torch.optim.Muon([ps[n] for n in matrices], **h))
    manifest = {"rule": "muon", "variant": "torch-bf16", "hyperparameters": h, "steps": 6}
    reproduced(put(tmp_path, "scaled", manifest, went))


def power(width: float) -> float:
    """The exponent of a power-function average."""
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(roots.real[np.abs(roots.imag) < 1e-9].max())


SCHEDULES = {
    "torch AveragedModel + EMA": ({"decay": 0.8}, lambda t, h: 0.0 if t == 1 else h["decay"]),
    "teacher update, initial copy counts (MoCo/BYOL/DINO/ALBEF)": ({"m": 0.6}, lambda t, h: h["m"]),
    "uniform (Polyak-Ruppert / SWA) average": ({}, lambda t, h: 1 - 1 / t),
    "power warmup": (
        {"decay": 0.85, "use_warmup": True, "warmup_gamma": 2.0, "warmup_power": 0.8},
        lambda t, h: 0.0 if t == 1 else min(1 - (1 + (t - 1) / h["warmup_gamma"]) ** -h["warmup_power"], h["decay"]),
    ),
    "diffusers default": ({"decay": 0.4}, lambda t, h: 0.0 if t == 1 else min(t / (9 + t), h["decay"])),
    "diffusers warmup": (
        {"decay": 0.7, "inv_gamma": 1.5, "power": 0.9, "use_ema_warmup": True},
        lambda t, h: 0.0 if t == 1 else min(1 - (1 + (t - 1) / h["inv_gamma"]) ** -h["power"], h["decay"]),
    ),
    "half-life EMA with ramp-up (EDM)": (
        {"batch_size": 3, "halflife": 8.0, "rampup_ratio": 0.3},
        lambda t, h: 0.5 ** (h["batch_size"] / min(h["halflife"], h["rampup_ratio"] * t * h["batch_size"])),
    ),
    "power-function EMA (EDM2, official)": (
        {"batch_size": 2, "sigma_rel": 0.13},
        lambda t, h: (1 - 1 / t) ** (power(h["sigma_rel"]) + 1),
    ),
    "power-function EMA": (
        {"sigma_rel": 0.11},
        lambda t, h: 0.0 if t == 1 else (1 - 1 / (t + 1)) ** (power(h["sigma_rel"]) + 1),
    ),
    "ema-pytorch EMA": (
        {"beta": 0.75, "power": 0.5, "update_after_step": 2, "update_every": 3},
        lambda t, h: (
            1.0
            if (t - 1) % h["update_every"]
            else 0.0
            if t <= h["update_after_step"] + 1
            else min(1 - (1 + t - h["update_after_step"] - 1) ** -h["power"], h["beta"])
        ),
    ),
}


@pytest.mark.parametrize("variant", averages.SCHEDULES)
def test_averages(tmp_path, variant):
    (h, beta), inputs, arrays = SCHEDULES[variant], common(tmp_path), {}
    for name in list(SHAPES)[:3]:
        online = average = inputs[f"p0/{name}"]
        went = []
        for t in range(1, 9):
            online = online - 0.03 * inputs[f"g/{name}"][t - 1]
            average = average + (1 - beta(t, h)) * (online - average)
            went.append(average)
        arrays[f"p/{name}"] = np.stack(went)
    manifest = {"rule": "ema-machinery", "kind": "trajectory", "variant": variant, "keys": KEYS, "steps": 8}
    notes = "tolerance 1e-6" if variant == "ema-pytorch EMA" else ""
    reproduced(put(tmp_path, "average", {**manifest, "hyperparameters": h, "notes": notes}, arrays))


def test_post_hoc_weights(tmp_path):
    t, widths = np.array([3.0, 3.0, 7.0, 7.0, 11.0]), np.array([0.06, 0.14, 0.06, 0.14, 0.06])
    t_out, widths_out = np.array([6.0, 11.0]), np.array([0.1, 0.07])
    gammas, wanted = np.array([power(w) for w in widths]), np.array([power(w) for w in widths_out])

    def product(a, i, b, j):
        low, exponent = (a / b, j) if a < b else (b / a, i)
        return (i + 1) * (j + 1) / ((i + j + 1) * max(a, b)) * low**exponent

    stored = list(zip(t, gammas, strict=True))
    left = np.array([[product(*one, *other) for other in stored] for one in stored])
    right = np.array([[product(*one, *other) for other in zip(t_out, wanted, strict=True)] for one in stored])
    weights = np.linalg.solve(left, right)
    arrays = {"in/0/t": t, "in/0/sigma_rel": widths, "in/0/t_out": t_out, "in/0/sigma_rel_out": widths_out}
    arrays |= {"out/0/coefficients": weights / weights.sum(0), "out/0/unnormalised": weights, "out/0/gamma": wanted}
    arrays["out/0/sigma_back"] = widths_out
    manifest = {"rule": "ema-machinery", "kind": "case", "variant": "post-hoc EMA reconstruction"}
    reproduced(put(tmp_path, "posthoc", {**manifest, "hyperparameters": {}}, arrays))


def test_cosines(tmp_path):
    n, start, end = 13, 0.9, 0.99
    closed = [end + (start - end) * (1 + np.cos(np.pi * k / (n - 1))) / 2 for k in range(n)]
    kind = {"rule": "ema-machinery", "kind": "case", "hyperparameters": {}}
    arrays = {"in/0/args": np.array([n, start, end]), "out/0/schedule": np.array(closed)}
    reproduced(put(tmp_path, "closed", {**kind, "variant": "cosine schedule reaching its end"}, arrays))
    base, final, epochs, per_epoch, warm, first = 0.95, 1.0, 4, 3, 2, 0.5
    rest = (epochs - warm) * per_epoch
    fall = [final + 0.5 * (base - final) * (1 + np.cos(np.pi * k / rest)) for k in range(rest)]
    schedule = np.concatenate([np.linspace(first, base, warm * per_epoch), fall])
    arrays = {"in/0/args": np.array([base, final, epochs, per_epoch, warm, first]), "out/0/schedule": schedule}
    reproduced(put(tmp_path, "open", {**kind, "variant": "DINO cosine schedule"}, arrays))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_bank_of_lightly(tmp_path):
    size, dim, batch, temperature = 7, 3, 2, 0.4
    bank, pointer = unit(draw(0, size, dim)), 0
    arrays = {"in/bank": bank.copy()}
    for t in range(5):
        query, key = draw(10 + t, batch, dim), draw(20 + t, batch, dim)
        q = torch.tensor(query, requires_grad=True)
        k, negatives = torch.tensor(unit(key)), torch.tensor(bank)
        n = F.normalize(q, dim=1)
        logits = torch.cat([(n * k).sum(1, keepdim=True), n @ negatives.T], 1) / temperature
        loss = F.cross_entropy(logits, torch.zeros(batch, dtype=torch.long))
        loss.backward()
        fits = min(batch, size - pointer)
        bank[pointer : pointer + fits] = unit(key)[:fits]
        pointer = 0 if pointer + batch >= size else pointer + batch
        arrays |= {f"in/{t}/query": query, f"in/{t}/key": key, f"out/{t}/loss": loss.item()}
        arrays |= {
            f"out/{t}/grad_query": q.grad.numpy(),
            f"out/{t}/bank": bank.copy(),
            f"out/{t}/ptr": np.array([pointer]),
        }
    h = {"K": size, "T": temperature, "batch": batch, "dim": dim}
    variant = "memory bank whose size the batch does not divide, lightly semantics"
    reproduced(put(tmp_path, "bank", {"rule": "ema-machinery", "variant": variant, "hyperparameters": h}, arrays))


@pytest.mark.parametrize("mlp", [True, False])
def test_moco_in_one_process(tmp_path, mlp):
    h = {"K": 6, "T": 0.5, "dim": 3, "lr": 0.2, "m": 0.7, "mlp": mlp}
    shapes = {"body.weight": (5, 4), "body.bias": (5,)}
    shapes |= {"fc.0.weight": (5, 5), "fc.0.bias": (5,), "fc.2.weight": (3, 5), "fc.2.bias": (3,)} if mlp else {
        "fc.weight": (3, 5), "fc.bias": (3,),
    }  # fmt: skip
    q = {n: torch.tensor(draw(i, *s), requires_grad=True) for i, (n, s) in enumerate(shapes.items())}
    k = {n: x.detach().clone() for n, x in q.items()}
    queue, pointer = torch.tensor(unit(draw(9, 6, 3)).T.copy()), 0
    arrays: Arrays = {"in/queue": queue.numpy().copy(), "in/queue_ptr": np.array([0])}
    arrays |= {f"in/q/{n}": x.detach().numpy().copy() for n, x in q.items()}

    def encode(w, x):
        x = F.relu(F.linear(x, w["body.weight"], w["body.bias"]))
        if mlp:
            x = F.linear(F.relu(F.linear(x, w["fc.0.weight"], w["fc.0.bias"])), w["fc.2.weight"], w["fc.2.bias"])
        else:
            x = F.linear(x, w["fc.weight"], w["fc.bias"])
        return F.normalize(x, dim=1)

    for t in range(3):
        views = [torch.tensor(draw(30 + 2 * t + i, 2, 4)) for i in (0, 1)]
        k = {n: h["m"] * x + (1 - h["m"]) * q[n].detach() for n, x in k.items()}
        queries, keys = encode(q, views[0]), encode(k, views[1])
        logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue], 1) / h["T"]
        loss = F.cross_entropy(logits, torch.zeros(2, dtype=torch.long))
        gradients = torch.autograd.grad(loss, list(q.values()))
        q = {n: (x - h["lr"] * g).detach().requires_grad_() for (n, x), g in zip(q.items(), gradients, strict=True)}
        queue[:, pointer : pointer + 2] = keys.T
        pointer = (pointer + 2) % h["K"]
        arrays |= {f"in/{t}/im_q": views[0].numpy(), f"in/{t}/im_k": views[1].numpy()}
        out = {"logits": logits, "loss": loss, "queue": queue, "queue_ptr": torch.tensor([pointer])}
        out |= {f"q/{n}": x for n, x in q.items()} | {f"k/{n}": x for n, x in k.items()}
        arrays |= {f"out/{t}/{n}": x.detach().numpy().copy() for n, x in out.items()}
    manifest = {"rule": "moco-v2", "kind": "case", "variant": "other head", "hyperparameters": h, "steps": 3}
    reproduced(put(tmp_path, "moco", manifest, arrays))


def test_moco_on_three_ranks(tmp_path):
    world, rows, h = 3, 2, {"K": 7, "T": 0.3, "dim": 4, "m": 0.8}
    weight, queue, pointer = draw(0, 4, 5), unit(draw(1, 7, 4)).T, 0
    arrays: Arrays = {"in/fc.weight": weight, "in/queue": queue.copy()}

    def encode(x):
        y = x @ weight.T
        return unit((y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5))

    for t in range(3):
        order = np.random.default_rng(t).permutation(world * rows)
        views = {v: [draw(50 + 10 * t + r + s, rows, 5) for r in range(world)] for v, s in (("im_q", 0), ("im_k", 5))}
        shuffled = np.concatenate(views["im_k"])[order]
        keys = np.empty((world * rows, 4))
        keys[order] = np.concatenate([encode(part) for part in np.split(shuffled, world)])
        for r in range(world):
            q = encode(views["im_q"][r])
            own = (q * keys[rows * r : rows * r + rows]).sum(1, keepdims=True)
            arrays[f"out/{t}/rank{r}/logits"] = np.concatenate([own, q @ queue], 1) / h["T"]
            arrays |= {f"in/{t}/rank{r}/{v}": views[v][r] for v in views}
        queue[:, (pointer + np.arange(world * rows)) % h["K"]] = keys.T
        pointer = (pointer + world * rows) % h["K"]
        arrays |= {f"in/{t}/perm": order, f"out/{t}/queue": queue.copy(), f"out/{t}/queue_ptr": np.array([pointer])}
    manifest = {"rule": "moco-v2", "kind": "case", "variant": "three processes", "hyperparameters": h}
    reproduced(put(tmp_path, "ranks", manifest, arrays))


@pytest.mark.parametrize(("beta", "reshape"), [(0.8, True), (None, False), (0.7, False)])
def test_smmf(tmp_path, beta, reshape):
    h = {"beta": beta, "decay_rate": -0.6, "eps": 1e-5, "growth_rate": 0.9, "lr": 0.04, "weight_decay": 0.2}
    inputs, arrays = common(tmp_path), {}

    def kept(matrix, whole):  # what is left of a non-negative matrix that is kept as row and column sums
        total = matrix.sum()
        return matrix if whole or total == 0 else np.outer(matrix.sum(1), matrix.sum(0)) / total

    for name, shape in SHAPES.items():
        x, n = inputs[f"p0/{name}"], int(np.prod(shape))
        cols = max(i for i in range(1, int(n**0.5) + 1) if n % i == 0)
        whole = not reshape and sum(size > 1 for size in shape) == 1
        m = v = np.zeros((n // cols, cols))
        went = []
        for t in range(1, 8):
            g = inputs[f"g/{name}"][t - 1].reshape(m.shape)
            x, rate = x * (1 - h["lr"] * h["weight_decay"]), 1 - t ** h["decay_rate"]
            sharp = rate * v + (1 - rate) * g**2
            mean = g
            if beta is not None:
                b = beta * h["growth_rate"] ** (t - 1)
                mean = b * m + (1 - b) * g
                m = mean if whole else np.where(mean > 0, 1, -1) * kept(np.abs(mean), whole)
            v = kept(sharp, whole)
            x = x - h["lr"] * (mean / (np.sqrt(sharp) + h["eps"])).reshape(shape)
            went.append(x)
        arrays[f"p/{name}"] = np.stack(went)
    manifest = {"rule": "smmf", "steps": 7, "hyperparameters": {**h, "vector_reshape": reshape}}
    reproduced(put(tmp_path, "smmf", manifest, arrays))


def test_auglocal(tmp_path):
    widths, d, tau = [8, 8, 8, 16, 16, 32, 32, 32], 3, 0.7
    rows, last = len(widths) - d - 1, len(widths) - d - 2
    found: dict[str, list[Any]] = {"depth": [], "selected": [], "strides": [], "batchnorm_before_classifier": []}
    for i in range(rows):
        depth = max(1, round(d * (1 - tau * i / last) + tau * i / last))
        left = len(widths) - 1 - i
        chosen = [round(i + left * j / depth) for j in range(1, depth + 1)]
        width, due, strides = widths[i], 0, []
        for layer in chosen:
            due += int(np.log2(widths[layer] // width))
            strides.append(1 + (due > 0))
            due, width = due - (due > 0), widths[layer]
        pad = [-1] * (d - len(chosen))
        for name, value in zip(found, (depth, chosen + pad, strides + pad, int(depth == 1)), strict=True):
            found[name].append(value)
    arrays = {"tiny/widths": np.array(widths)} | {f"tiny/d{d}/tau{tau}/{n}": np.array(x) for n, x in found.items()}
    manifest = {
        "rule": "auglocal",
        "kind": "cases",
        "hyperparameters": {"d": [d], "pyramid_coeff": [tau]},
    }
    reproduced(put(tmp_path, "table", manifest, arrays))
