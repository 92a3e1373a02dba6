"""Rules of learning with a server, on the problem that a vector holds: softmax regression of a few clients."""

import re
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from polyak.federated import Batch, InProcess, privacy
from polyak.federated.privacy_loss import numerical_epsilon
from polyak.federated.rules import DPBREM, FedCM, FederatedRule, FedMoSWA, FedSWA, Message
from polyak.federated.rules.tensors import Tensors, mixed, rows, unrowed
from tests.reproduce.vector import Vector, array

PRV_ERROR = 0.01
"""What Opacus' accountant adds to its estimate, unless it is told another error."""


def _federation(vector: Vector, rule: FederatedRule) -> tuple[InProcess, dict[int | str, list[Batch]]]:
    """The clients of a vector under a rule, and the batches of each."""
    start, bias = vector.input("in/W0"), vector.input("in/b0")
    inputs, targets = vector.input("in/x"), vector.input("in/y")
    model = nn.Linear(start.shape[1], start.shape[0], dtype=start.dtype)
    model.load_state_dict({"weight": start, "bias": bias})
    clients = {i: (x.flatten(0, 1), y.flatten()) for i, (x, y) in enumerate(zip(inputs, targets, strict=True))}
    batches = {
        i: [Batch(*one) for one in zip(x, y, strict=True)] for i, (x, y) in enumerate(zip(inputs, targets, strict=True))
    }
    return InProcess(rule, model, clients, loss=F.cross_entropy), batches  # type: ignore[arg-type,return-value]


def _went(vector: Vector, rule: FederatedRule, keep: Callable[[InProcess], Tensors]) -> dict[str, np.ndarray]:
    """What is to be kept of every round, stacked."""
    run, batches = _federation(vector, rule)
    rounds: list[Tensors] = []
    for selected in vector.input("in/selected").tolist():
        run.round(selected, batches=batches)
        rounds.append(keep(run))
    return {key: np.stack([array(one[key]) for one in rounds]) for key in rounds[0]}


def fedcm(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """FedCM: weights and momentum of every round."""
    vector.read_all("beta", "local_steps", "lr", "max_norm", "server_lr", "weight_decay")
    lr, steps, server = vector.option("lr"), vector.option("local_steps"), vector.option("server_lr")
    if isinstance(server, str):
        server = None if re.match(r"lr\*K", server) else float(server)
    rule = FedCM(
        local_lr=lr, local_steps=steps, server_lr=server, beta=vector.option("beta"),
        max_norm=vector.option("max_norm"), weight_decay=vector.option("weight_decay"),
    )  # fmt: skip

    def keep(run: InProcess) -> Tensors:
        sets = run.state.sets
        return {f"out/{n}": w for n, w in sets["arrays"].items()} | {
            f"out/g_{n}": g for n, g in sets["momentum"].items()
        }

    return _went(vector, rule, keep)


def fedswa(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """FedSWA, and FedMoSWA with the memories of server and clients."""
    vector.read_all("B", "K", "N", "S", "T", "alpha", "c", "d", "gamma", "lr", "rho", "seed")
    notes = "notes"
    h = {
        "local_lr": vector.option("lr"), "local_steps": vector.option("K"), "server_lr": vector.option("alpha"),
        "lr_floor": vector.option("rho"), "weight_decay": float(vector.said(r"weight decay ([\d.e-]+)", notes)[0]),
        "max_norm": float(vector.said(r"clip ([\d.]+)", notes)[0]),
    }  # fmt: skip

    def plain(run: InProcess) -> Tensors:
        return {f"out/fedswa/{n}": w for n, w in run.state.sets["arrays"].items()}

    def with_memories(run: InProcess) -> Tensors:
        sets, ids = run.state.sets, list(run.clients)
        held = [run.states.get(c, run.rule.client_state(sets["arrays"])).sets["control"] for c in ids]
        found = {f"out/fedmoswa/{n}": w for n, w in sets["arrays"].items()}
        found |= {f"out/fedmoswa/m_{n}": m for n, m in sets["control"].items()}
        return found | {f"out/fedmoswa/c_{n}": torch.stack([one[n] for one in held]) for n in held[0]}

    moving = FedMoSWA(**h, momentum=1 - vector.option("gamma"))
    return _went(vector, FedSWA(**h), plain) | _went(vector, moving, with_memories)


def dp_brem(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """Three runs of DP-BREM on given gradients, with clients that send a constant, and the attacks on the last ones."""
    vector.read_all("C", "T", "bad", "beta", "lr", "lr_end", "max_record_grad_norm", "n", "noise_multiplier", "seed")
    shared = {
        "lr": vector.option("lr"), "final_lr_ratio": vector.option("lr_end"), "rounds": vector.option("T"),
        "max_grad_norm": vector.option("max_record_grad_norm"), "client_clip": vector.option("C"),
        "final_norm_ratio": 1 - float(vector.said(r"multiplied by \(1-([\d.]+) t/T\)", "notes")[0]),
        "momentum": vector.option("beta"), "sample_rate": 1.0, "client_rate": 1.0,
    }  # fmt: skip
    names = sorted(key.removeprefix("in/p0/") for key in vector.inputs if key.startswith("in/p0/"))
    runs = {
        "center": DPBREM(**shared, noise_multiplier=0.0),
        "direct": DPBREM(**shared, noise_multiplier=0.0, client_clipping="direct"),
        "center_noise": DPBREM(**shared, noise_multiplier=vector.option("noise_multiplier")),
    }
    found = _last_attacks(vector, names)
    for run, rule in runs.items():
        found |= {f"out/{run}/{key}": value for key, value in _given_gradients(vector, rule, names).items()}
    return found


def _given_gradients(vector: Vector, rule: DPBREM, names: list[str]) -> dict[str, np.ndarray]:
    """Weights and momentum of a run whose clients' gradients are recorded."""
    constant, liars = float(vector.said(r"constant vector (\d+(?:\.\d+)?)", "notes")[0]), range(vector.option("bad"))
    gradients = {n: vector.input(f"in/grads/{n}") for n in names}
    normal = {n: vector.input(f"in/noise_std_normal/{n}") for n in names}
    clients = range(vector.option("n"))
    state = rule.server_state({n: vector.input(f"in/p0/{n}") for n in names}, len(clients))
    held = {c: rule.client_state(state.sets["arrays"]).sets["momentum"] for c in clients}
    went: list[dict[str, torch.Tensor]] = []
    for t in range(vector.option("T")):
        held = {c: mixed({n: g[t, c] for n, g in gradients.items()}, held[c], rule.momentum) for c in clients}
        lie = {n: torch.full_like(w, constant) for n, w in held[0].items()}
        replies = [(c, Message(t, {"momentum": lie if c in liars else held[c], "buffers": {}})) for c in clients]
        state = rule.aggregate(state, replies, {n: z[t] for n, z in normal.items()}).state
        sets = state.sets
        went.append({f"p/{n}": w for n, w in sets["arrays"].items()})
        went[-1] |= {f"global_momentum/{n}": m for n, m in sets["momentum"].items()}
    return {key: np.stack([array(one[key]) for one in went]) for key in went[0]}


def _last_attacks(vector: Vector, names: list[str]) -> dict[str, np.ndarray]:
    """Min-max on the last gradients of the honest clients, and ALIE on those of the others."""
    from polyak.federated.attacks import ALIE, MinMax
    from polyak.federated.attacks.scaled import hidden_factor

    n, bad = vector.option("n"), vector.option("bad")
    last = [{name: vector.input(f"in/grads/{name}")[-1, c] for name in names} for c in range(n)]
    honest, liars = rows(last[bad:]), rows(last[:bad])
    scale = float(vector.said(r"mean - ([\d.]+)\*std\*z_max", "notes")[0])
    sent = {
        "minmax_sign": MinMax(deviation="sign")(honest)[0],
        "minmax_std": MinMax(deviation="std")(honest)[0],
        "alie": ALIE(z=-scale * hidden_factor(n, bad))(liars)[0],
    }
    return {
        f"out/{attack}/{name}": array(part)
        for attack, row in sent.items()
        for name, part in unrowed(row, last[0]).items()
    }


def accounting(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """Renyi divergences and privacy losses of the cases and of some together, and a noise that keeps a budget."""
    vector.read_all("alphas")
    first, last, step, low, high = map(float, re.findall(r"[\d.]+\d", vector.option("alphas").replace("..", " ")))
    count = round((last - first) / step) + 1
    orders = [first + step * i for i in range(count)] + [float(a) for a in range(int(low), int(high) + 1)]
    orders = [round(order, 10) for order in orders]
    cases = [_case(vector, i) for i in vector.steps(r"case(\d+)/in/")]
    found: dict[str, float | np.ndarray] = {}
    for i, (noise, rate, steps, delta) in enumerate(cases):
        accountant = privacy.RDPAccountant()
        accountant.step(noise, rate, steps)
        spent = accountant.spent(delta, orders)
        asked = vector.input(f"case{i}/in/orders").tolist()
        found[f"case{i}/out/rdp"] = np.array(privacy.rdp_gaussian(noise, rate, steps, asked))
        found |= {f"case{i}/out/rdp_epsilon": spent.epsilon, f"case{i}/out/rdp_best_alpha": spent.order}
        found[f"case{i}/out/prv_epsilon"] = numerical_epsilon(noise, rate, steps, delta, PRV_ERROR)
    return {key: array(value) for key, value in (found | _together(vector, cases)).items()}


def _case(vector: Vector, i: int) -> tuple[float, float, int, float]:
    noise, rate, steps, delta = (
        float(vector.input(f"case{i}/in/{name}")) for name in ("noise_multiplier", "sample_rate", "steps", "delta")
    )
    return noise, rate, int(steps), delta


def _together(vector: Vector, cases: list[tuple[float, float, int, float]]) -> dict[str, float | np.ndarray]:
    """The mixed history, and the calibration."""
    each, some = vector.said(r"mixed: (\d+) steps each of the first (\w+)", "notes")
    words = {"two": 2, "three": 3, "four": 4, "five": 5}
    accountant = privacy.RDPAccountant()
    for noise, rate, _, _ in cases[: words[some] if some in words else int(some)]:
        accountant.step(noise, rate, int(each))
    epsilon, delta, rate, steps = vector.given("calibrate/in").tolist()
    return {
        "mixed/out/history_len": np.array(len(accountant.history)),
        "mixed/out/rdp_epsilon": accountant.spent(float(vector.given("mixed/in/delta"))).epsilon,
        "calibrate/in": array(vector.given("calibrate/in")),
        "mixed/in/delta": array(vector.given("mixed/in/delta")),
        "calibrate/out/noise_multiplier": privacy.noise_multiplier_for(epsilon, delta, rate, int(steps)),
    }


RULES = {"fedavg-m": fedcm, "fedswa": fedswa, "dp-brem": dp_brem, "dp-accounting": accounting}
