"""SCAFFOLD-M: SCAFFOLD with the server's mean direction in every local step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from polyak.federated.rules.fedavg_m import BENEFITS, LocalMomentum
from polyak.federated.rules.local_sgd import Step
from polyak.federated.rules.messages import Reply, State
from polyak.federated.rules.scaffold import Controlled
from polyak.federated.rules.tensors import Tensors, added, mixed


class ControlledMomentum(Controlled, LocalMomentum):
    """Base of the rules with both memories.

    ::

        server: u <- mean_i (x - y_i) / (eta K);   c <- c + sum_i (c_i' - c_i) / N
    """

    server_sets: ClassVar[tuple[str, ...]] = ("control", "momentum")

    def _remembered(self, state: State, good: Sequence[Reply], update: Tensors) -> dict[str, Tensors]:
        return {**Controlled._remembered(self, state, good, update), "momentum": update}


class SCAFFOLDM(ControlledMomentum):
    """SCAFFOLD-M (Cheng et al., arXiv:2306.16504).

    ::

        client: y <- x;   K times:   y <- y - eta ((1 - momentum) (g_i(y) - c_i + c) + momentum u)
                c_i' <- mean of its g_i(y)
        server: u <- mean_i (x - y_i) / (eta K);   x <- x - gamma u;   c <- c + sum_i (c_i' - c_i) / N

    The paper's beta is 1 - ``momentum``. With ``momentum=0`` it is SCAFFOLD.
    """

    slug = "scaffold_m"
    paper = BENEFITS

    def _direction(self, fresh: Tensors, step: Step) -> Tensors:
        return mixed(added(fresh, self._drift(step), -1.0), step.message.sets["momentum"], self._weight)
