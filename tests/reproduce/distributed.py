"""Outer optimizers of asynchronous workers: an arrival a step, of a recorded staleness."""

from typing import Any

import numpy as np
import torch
from torch.nn import Parameter

from polyak.distributed.simulation import Server
from polyak.optim import SGD
from tests.reproduce.vector import Unknown, Vector, array

RULE = {"vanilla": "each", "delayed_sgd": "buffered"}


def async_local_sgd(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """The weights after each arrival, whose pseudo-gradient is the recorded gradient."""
    vector.read_all("lr", "momentum", "nesterov", "num_workers", "staleness")
    name, _, weight = vector.variant.partition("/")
    if name not in RULE or weight not in ("constant", "polynomial"):
        raise Unknown(f"nothing recomputes the variant {vector.variant!r} of async-local-sgd")
    params = {key: Parameter(vector.input(f"p0/{key}", device)) for key in vector.tensors}
    options: dict[str, Any] = {"lr": vector.option("lr"), "momentum": vector.option("momentum", 0.0)}
    outer = SGD(params.values(), nesterov=vector.option("nesterov", False), execution=execution, **options)
    each = RULE[name] == "each"
    server = Server(outer, vector.option("num_workers"), RULE[name], weight if each else "one")
    gradients = [vector.input(f"g/{key}", device) for key in params]
    went: dict[str, list[torch.Tensor]] = {key: [] for key in params}
    for t in range(vector.length):
        server.apply([g[t] for g in gradients], vector.option("staleness", [0] * vector.length)[t])
        for key, p in params.items():
            went[key].append(p.detach().clone())
    return {f"p/{key}": array(torch.stack(steps)) for key, steps in went.items()}


RULES = {"async-local-sgd": async_local_sgd}
