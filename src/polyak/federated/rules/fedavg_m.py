"""FedAvg-M: the server's mean direction in every local step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from polyak.declare import HALF_OPEN_UNIT, SHARE, Paper, Range
from polyak.federated.rules.local_sgd import LocalSGD, Step
from polyak.federated.rules.messages import Reply, State
from polyak.federated.rules.tensors import Tensors, mixed

BENEFITS = Paper("Momentum Benefits Non-IID Federated Learning Simply and Provably", 2024, "2306.16504")
Memory = Annotated[float | None, HALF_OPEN_UNIT, Range(0.5, 0.99), "weight of the memory; None: 1 - beta, or the usual"]
Fresh = Annotated[float | None, SHARE, "weight of the fresh gradient, instead of momentum"]


class LocalMomentum(LocalSGD):
    """Base of the rules that mix the server's mean direction into local steps; ``momentum`` is the memory's weight.

    ::

        d <- (1 - momentum) g + momentum u
    """

    usual_momentum: ClassVar[float] = 0.8

    momentum: Memory = None
    beta: Fresh = None

    def _begin(self, values: dict[str, Any]) -> None:
        momentum, beta = values["momentum"], values["beta"]
        if momentum is not None and beta is not None:
            raise ValueError(
                f"{type(self).__name__}: momentum must be None where beta is given, which is 1 - momentum: "
                f"got momentum={momentum!r}, beta={beta!r}"
            )
        if momentum is None:
            momentum = self.usual_momentum if beta is None else 1 - beta
        super()._begin({**values, "momentum": momentum, "beta": None})

    @property
    def _weight(self) -> float:
        assert self.momentum is not None  # _begin has set it
        return self.momentum

    def _remembered(self, state: State, good: Sequence[Reply], update: Tensors) -> dict[str, Tensors]:
        return {"momentum": update}


class FedAvgM(LocalMomentum):
    """FedAvg-M (Cheng et al., "Momentum Benefits Non-IID Federated Learning", arXiv:2306.16504): FedCM's update.

    ::

        client: y <- x;   K times:   y <- y - eta ((1 - momentum) g_i(y) + momentum u)
        server: u <- mean_i (x - y_i) / (eta K);   x <- x - gamma u

    The papers' beta is the weight of the *fresh* gradient, 1 - ``momentum``; usual here 0.2, a momentum of 0.8. Not to
    be confused with heavy ball at the server alone, which Flower calls ``FedAvgM`` and this library
    :class:`ServerMomentum`. Clients keep nothing, so it fits clients that are seen once. u starts at zero, without
    a correction: the first round is damped by 1 - momentum.
    """

    slug = "fedavg_m"
    paper = BENEFITS
    server_sets = ("momentum",)

    def _direction(self, fresh: Tensors, step: Step) -> Tensors:
        return mixed(fresh, step.message.sets["momentum"], self._weight)
