"""SCAFFOLD-M-VR: SCAFFOLD, momentum and variance reduction."""

from __future__ import annotations

from typing import ClassVar

from polyak.federated.rules.fedavg_m import BENEFITS
from polyak.federated.rules.fedavg_m_vr import VarianceReduced
from polyak.federated.rules.local_sgd import Step
from polyak.federated.rules.scaffold import Controlled
from polyak.federated.rules.tensors import Tensors, added


class SCAFFOLDMVR(VarianceReduced, Controlled):
    """SCAFFOLD-M-VR (Cheng et al., arXiv:2306.16504).

    ::

        client: y <- x;   K times:   y <- y - eta (g_i(y) - (1 - momentum) (c_i - c) + momentum (u - g_i(x_before)))
                c_i' <- mean of its g_i(y)
        server: u <- mean_i (x - y_i) / (eta K);   x_before <- x;   x <- x - gamma u;   c <- c + sum_i (c_i' - c_i) / N

    With ``momentum=0`` it is SCAFFOLD, with control variates of zero FedAvg-M-VR; see there for the two gradients,
    the first round and the rates.
    """

    slug = "scaffold_m_vr"
    paper = BENEFITS
    server_sets: ClassVar[tuple[str, ...]] = ("control", "momentum", "previous")

    def _direction(self, fresh: Tensors, step: Step) -> Tensors:
        return self._corrected(added(fresh, self._drift(step), self._weight - 1), step)
