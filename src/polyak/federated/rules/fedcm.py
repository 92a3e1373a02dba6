"""FedCM: FedAvg-M as it was released first."""

from __future__ import annotations

from polyak.declare import Paper
from polyak.federated.rules.fedavg_m import FedAvgM


class FedCM(FedAvgM):
    """FedCM (Xu et al., "FedCM: Federated Learning with Client-level Momentum", arXiv:2106.10874): a preset.

    ::

        client: y <- x;   K times:   y <- y - eta ((1 - momentum) clip(grad f_i(y)) + momentum u + wd y)
        server: u <- mean_i (x - y_i) / (eta K);   x <- x - gamma u

    It is ``fedavg_m`` with weight decay behind the mix, so that u holds it, and gradients clipped to 10. Older code
    multiplies the weight decay by 1 - momentum.
    """

    slug = "fedcm"
    paper = Paper("FedCM: Federated Learning with Client-level Momentum", 2021, "2106.10874")
    vectors = ("fedavg-m",)
    usual_momentum = 0.9

    weight_decay = 1e-3
    weight_decay_position = "after_mix"
    max_norm = 10.0
