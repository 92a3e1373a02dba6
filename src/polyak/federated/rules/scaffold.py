"""SCAFFOLD: the drift of each client taken out of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from polyak.declare import Interval, Paper
from polyak.federated.rules.base import Gradient
from polyak.federated.rules.local_sgd import LocalSGD, Step
from polyak.federated.rules.messages import ClientId, Message, Reply, Sets, State
from polyak.federated.rules.tensors import Tensors, added, scaled

WarmStart = Annotated[
    int, Interval(0), "batches at the first weights whose mean gradients are the first memories; 0: zeros"
]


class WarmStarted(LocalSGD):
    """Base of the rules whose memories can begin with gradients at the first weights, as the theory has it.

    ::

        c_i <- mean of the gradients of client i over B batches at x;   c, u <- mean_i c_i
    """

    warm_start_batches: WarmStart = 0

    def warmed(
        self, state: State, clients: Mapping[ClientId, State], gradients: Mapping[ClientId, Tensors]
    ) -> tuple[State, dict[ClientId, State]]:
        """The states with warm memories, of the mean gradient of each client at the server's weights.

        Raises:
            ValueError: a client's gradient is missing.
        """
        if missing := [client for client in clients if client not in gradients]:
            raise ValueError(f"{type(self).__name__}: gradients must be those of all clients, none is of {missing}")
        mean = {n: w * 0 for n, w in state.sets["arrays"].items()}
        for client in clients:
            mean = added(mean, gradients[client], 1 / len(clients))
        memories = {s: mean for s in self.server_sets if s in ("control", "momentum")}
        keeps = "control" in self.client_sets
        held = {
            client: replace(one, sets={**one.sets, "control": dict(gradients[client])}) if keeps else one
            for client, one in clients.items()
        }
        return State({**state.sets, **memories}, {**state.counters, "warm": 1}), held


class Controlled(WarmStarted):
    """Base of the rules with a control variate c_i for each client, whose mean over all clients is the server's c.

    ::

        client: c_i' <- mean of its g_i over the local steps, unless it was not selected
        server: c <- c + sum over the selected of (c_i' - c_i) / N
    """

    client_sets: ClassVar[tuple[str, ...]] = ("control",)
    server_sets: ClassVar[tuple[str, ...]] = ("control",)
    reply_sets: ClassVar[tuple[str, ...]] = ("update", "control")
    averages_gradients: ClassVar[bool] = True

    def _drift(self, step: Step) -> Tensors:
        """``c_i - c``."""
        return added(step.client["control"], step.message.sets["control"], -1.0)

    def _kept(
        self, client: Sets, message: Message, way: Tensors, average: Tensors | None, batches: Sequence[Any],
        gradient: Gradient,
    ) -> tuple[dict[str, Tensors], dict[str, Tensors]]:  # fmt: skip
        assert average is not None
        return {"control": average}, {"control": added(average, client["control"], -1.0)}

    def _remembered(self, state: State, good: Sequence[Reply], update: Tensors) -> dict[str, Tensors]:
        held = state.sets["control"]
        change = self._uniform(good, "control")
        return {"control": added(held, scaled(change, len(good) / state.counters["clients"]))}


class SCAFFOLD(Controlled):
    """SCAFFOLD (Karimireddy et al., "Stochastic Controlled Averaging for Federated Learning", arXiv:1910.06378).

    ::

        client: y <- x;   K times:   y <- y - eta (g_i(y) - c_i + c);   c_i' <- mean of its g_i(y)
        server: u <- mean_i (x - y_i) / (eta K);   x <- x - gamma u;   c <- c + sum_i (c_i' - c_i) / N

    c_i' is the paper's second option said with the gradients themselves. Clients have a state, so their ids must be
    the same from round to round. The control variates of the replies go through the aggregator too, uniformly.
    """

    slug = "scaffold"
    paper = Paper("SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", 2020, "1910.06378")

    def _direction(self, fresh: Tensors, step: Step) -> Tensors:
        return added(fresh, self._drift(step), -1.0)
