"""FedMoSWA: FedSWA with a memory of every client, and a moving average of them at the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from polyak.declare import HALF_OPEN_UNIT, Range
from polyak.federated.rules.base import Gradient
from polyak.federated.rules.fedswa import SWA, FedSWA
from polyak.federated.rules.local_sgd import Step
from polyak.federated.rules.messages import Message, Reply, Sets, State
from polyak.federated.rules.tensors import Tensors, added, scaled


class FedMoSWA(FedSWA):
    """FedMoSWA (Liu et al., "Momentum-Based Stochastic Controlled Weight Averaging", arXiv:2507.20016).

    ::

        client: y <- x;   k = 0 ... K - 1:   y <- y - eta_k (clip(grad f_i(y)) + wd y);   y <- y - eta_k (m - c_i)
                c_i' <- c_i - m + (x - y) / sum_k eta_k                         (option II)
        server: x <- x + alpha mean_i (y_i - x);   m <- m + (1 - momentum) mean_i (c_i' - m)

    The paper's gamma is 1 - ``momentum``; its paper says 0.2, the code of its time 0.1, that of 2026 0.4. The first
    aggregation takes the mean itself. The sum of the rates is taken as K eta (1 + rho) / 2, as the authors' code
    does; ``exact_lr_sum`` takes the sum. Option I makes c_i' the client's gradient at x, over the same batches.
    Their code mixes up the c_i of clients that share an actor; here each client has its own.
    """

    slug = "fedmoswa"
    paper = SWA
    vectors = ("fedswa",)
    client_sets = ("control",)
    server_sets = ("control",)
    reply_sets = ("update", "control")

    momentum: Annotated[float, HALF_OPEN_UNIT, Range(0.5, 0.95), "weight of the server's memory, 1 - gamma"] = 0.8
    exact_lr_sum: Annotated[bool, "divide by the sum of the local rates, not by its approximation"] = False
    option: Annotated[Literal["I", "II"], "a client's memory: its gradient at x, or its mean direction"] = "II"

    def _stepped(self, weights: Tensors, step: Step) -> Tensors:
        return added(added(weights, step.message.sets["control"], -step.lr), step.client["control"], step.lr)

    def _kept(
        self, client: Sets, message: Message, way: Tensors, average: Tensors | None, batches: Sequence[Any],
        gradient: Gradient,
    ) -> tuple[dict[str, Tensors], dict[str, Tensors]]:  # fmt: skip
        held, server = client["control"], message.sets["control"]
        total = self._lr_sum(message.scalars["lr"], len(batches))
        if self.option == "I":
            new = self._at_start(message, batches, gradient)
        elif total == 0:
            new = held
        else:
            new = added(added(held, server, -1.0), way, 1 / total)
        return {"control": new}, {"control": added(new, server, -1.0)}

    def _lr_sum(self, lr: float, steps: int) -> float:
        return sum(self._lrs(lr, steps)) if self.exact_lr_sum else steps * lr * (1 + self.lr_floor) / 2

    def _at_start(self, message: Message, batches: Sequence[Any], gradient: Gradient) -> Tensors:
        start, buffers = message.sets["arrays"], message.sets["buffers"]
        gradients = [gradient(start, buffers, batch)[0] for batch in batches]
        mean = gradients[0]
        for one in gradients[1:]:
            mean = added(mean, one)
        return scaled(mean, 1 / len(batches))

    def _remembered(self, state: State, good: Sequence[Reply], update: Tensors) -> dict[str, Tensors]:
        held = state.sets["control"]
        change = self._uniform(good, "control")
        fresh = 1.0 if state.counters["round"] == 0 else 1 - self.momentum
        return {"control": added(held, change, fresh)}


class FedMoSWA2026(FedMoSWA):
    """FedMoSWA as released in 2026, there called MoFedSWA: constant local rates, no step beyond the mean: a preset.

    ::

        client: y <- x;   K times:   y <- y - eta (clip(grad f_i(y)) + m - c_i + wd y)
                c_i' <- c_i - m + (x - y) / (eta K)
        server: x <- x + mean_i (y_i - x);   m <- m + (1 - momentum) mean_i (c_i' - m)

    Their file steps once with the correction in the gradient, which is the same. From the authors' code
    (``update_scafplus`` and ``apply_weights_SCAF`` of main_FedSWA.py).
    """

    slug = "fedmoswa_2026"
    paper = SWA

    server_lr = 1.0
    lr_floor = 1.0
    momentum = 0.6
