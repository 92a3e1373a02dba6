"""Heavy ball at the server, which Flower calls FedAvgM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from polyak.declare import Momentum, Paper, Range
from polyak.federated.rules.local_sgd import LocalSGD
from polyak.federated.rules.messages import Reply, State
from polyak.federated.rules.tensors import Tensors, added


class ServerMomentum(LocalSGD):
    """Server momentum (Hsu et al., "Measuring the Effects of Non-Identical Data Distribution", arXiv:1909.06335).

    ::

        client: y <- x;   K times:   y <- y - eta g_i(y)
        server: v <- momentum v + mean_i (x - y_i) / (eta K);   x <- x - gamma v

    Hsu et al. and Flower call it FedAvgM. Local steps know nothing of the momentum; those of ``fedavg_m`` do. With
    ``server_lr=None`` gamma is eta K: a server rate of 1 in Flower's terms.
    """

    slug = "server_momentum"
    paper = Paper(
        "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
        2019,
        "1909.06335",
    )
    server_sets = ("momentum",)

    momentum: Annotated[Momentum, Range(0.5, 0.99), "weight of the memory"] = 0.9

    def _remembered(self, state: State, good: Sequence[Reply], update: Tensors) -> dict[str, Tensors]:
        return {"momentum": added(update, state.sets["momentum"], self.momentum)}

    def _server_direction(self, update: Tensors, remembered: dict[str, Tensors]) -> Tensors:
        return remembered["momentum"]
