"""FedAvg-M-VR: momentum with variance reduction, by a second gradient at the weights of the round before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from polyak.federated.rules.fedavg_m import BENEFITS, LocalMomentum
from polyak.federated.rules.local_sgd import Step
from polyak.federated.rules.messages import Reply, State
from polyak.federated.rules.scaffold import WarmStarted
from polyak.federated.rules.tensors import Tensors, added


class VarianceReduced(WarmStarted, LocalMomentum):
    """Base of the rules whose memory is corrected along the way from the weights of the round before.

    ::

        d <- ... + momentum (u - g_i(x_before)),   g_i(y) and g_i(x_before) on one batch with the same dropout
    """

    server_sets: ClassVar[tuple[str, ...]] = ("momentum", "previous")
    usual_momentum: ClassVar[float] = 0.7

    local_lr = 0.003
    server_lr = 0.5

    def server_state(
        self, weights: Mapping[str, Tensor], num_clients: int, buffers: Mapping[str, Tensor] | None = None
    ) -> State:
        """As of every rule; the weights of the round before are the first ones."""
        state = super().server_state(weights, num_clients, buffers)
        return replace(state, sets={**state.sets, "previous": state.sets["arrays"]})

    def _sent(self, state: State) -> dict[str, float]:
        cold = state.counters["round"] == 0 and not state.counters["warm"]
        return {**super()._sent(state), "cold": float(cold)}

    def _remembered(self, state: State, good: Sequence[Reply], update: Tensors) -> dict[str, Tensors]:
        return {**super()._remembered(state, good, update), "momentum": update, "previous": state.sets["arrays"]}

    def _correction(self, step: Step) -> Tensors | None:
        """``u - g_i(x_before)``; none in a cold first round, where it would cancel what there is to step along."""
        if step.message.scalars["cold"] or not self._weight:
            return None
        before = step.message.sets["previous"]
        gradient, _ = step.gradient(before, step.buffers, step.batch)
        return added(step.message.sets["momentum"], self._prepared(gradient, before), -1.0)

    def _corrected(self, direction: Tensors, step: Step) -> Tensors:
        correction = self._correction(step)
        return direction if correction is None else added(direction, correction, self._weight)


class FedAvgMVR(VarianceReduced):
    """FedAvg-M-VR (Cheng et al., arXiv:2306.16504).

    ::

        client: y <- x;   K times:   y <- y - eta (g_i(y) + momentum (u - g_i(x_before)))
        server: u <- mean_i (x - y_i) / (eta K);   x_before <- x;   x <- x - gamma u

    Both gradients are of one batch, with the same dropout, and the second leaves running statistics alone. The paper's
    beta is 1 - ``momentum``. In a first round without ``warm_start_batches`` d is g_i(y): the paper's line would
    nearly cancel there. With one client and one step it is STORM. Take eta much smaller than gamma / K: tied to
    gamma = eta K it diverges at rates that suit the others.
    """

    slug = "fedavg_m_vr"
    paper = BENEFITS

    def _direction(self, fresh: Tensors, step: Step) -> Tensors:
        return self._corrected(fresh, step)
