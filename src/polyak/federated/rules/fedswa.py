"""FedSWA: falling rates in every round, and a server step beyond the mean."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from polyak.declare import COUNT, POSITIVE, SHARE, UNIT, Paper, Range
from polyak.federated.rules.local_sgd import LocalSGD
from polyak.federated.rules.messages import Message, State

SWA = Paper(
    "Improving Generalization in Federated Learning with Highly Heterogeneous Data via Momentum-Based Stochastic "
    "Controlled Weight Averaging", 2025, "2507.20016",
)  # fmt: skip


class FedSWA(LocalSGD):
    """FedSWA (Liu et al., "Momentum-Based Stochastic Controlled Weight Averaging", arXiv:2507.20016).

    ::

        client: y <- x;   k = 0 ... K - 1:   eta_k <- eta (1 - k / K) + rho eta k / K
                y <- y - eta_k (clip(grad f_i(y)) + wd y)
        server: x <- x + alpha mean_i (y_i - x)

    alpha is ``server_lr``, rho ``lr_floor``. The local rate eta follows ``schedule`` over ``rounds``. Running
    statistics are averaged plainly: the authors' code extrapolates those too, by which a variance can become negative.
    With alpha = rho = 1 it is FedAvg.
    """

    slug = "fedswa"
    paper = SWA
    vectors = ("fedswa",)

    local_steps = 50
    server_lr: Annotated[float, POSITIVE, Range(0.5, 3.0), "alpha, by which the mean of the clients' ways is taken"] = (
        1.5
    )
    weight_decay = 1e-3
    max_norm = 10.0
    participation = 0.1
    lr_floor: Annotated[
        float, SHARE, Range(0.01, 1.0), "rho: the rate at the end of a round over that at its start"
    ] = 0.1
    schedule: Annotated[
        Literal["constant", "cosine", "exponential"],
        "local rate over the rounds: cosine to 0, or times lr_decay a round",
    ] = "constant"
    rounds: Annotated[int, COUNT, "rounds of the cosine"] = 1000
    lr_decay: Annotated[float, SHARE, "factor of the exponential schedule"] = 0.998

    def _lr(self, round: int) -> float:
        if self.schedule == "cosine":
            return self.local_lr * (1 + math.cos(math.pi * min(round / self.rounds, 1.0))) / 2
        return self.local_lr * (self.lr_decay**round if self.schedule == "exponential" else 1.0)

    def _lrs(self, lr: float, steps: int) -> list[float]:
        return [lr * (1 - k / steps) + self.lr_floor * lr * k / steps for k in range(steps)]

    def _divisor(self, message: Message, steps: int) -> float:
        return 1.0

    def _server_lr(self, state: State) -> float:
        return self.server_lr


class FedSWA2026(FedSWA):
    """FedSWA as released in 2026: twice the local rate, which falls to zero, and no step beyond the mean: a preset.

    ::

        client: y <- x;   k = 0 ... K - 1:   y <- y - eta (1 - k / K) (clip(grad f_i(y)) + wd y)
        server: x <- x + alpha mean_i (y_i - x)

    The local rate is the doubled one. From the authors' code (``update_FedSWA`` of main_FedSWA.py).
    """

    slug = "fedswa_2026"
    paper = SWA

    local_lr = 0.2
    server_lr = 1.0
    lr_floor: Annotated[float, UNIT, "rho: the rate at the end of a round over that at its start"] = 0.0
