"""Rules of learning with a server, on the problem that a vector holds: softmax regression of a few clients."""

import re
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from polyak.federated import Batch, InProcess
from polyak.federated.rules import FedCM, FederatedRule, FedMoSWA, FedSWA
from polyak.federated.rules.tensors import Tensors
from tests.reproduce.vector import Vector, array


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


RULES = {"fedavg-m": fedcm, "fedswa": fedswa}
