"""FedAvg: local steps of SGD, and the mean."""

from __future__ import annotations

from polyak.declare import Paper
from polyak.federated.rules.local_sgd import LocalSGD


class FedAvg(LocalSGD):
    """FedAvg (McMahan et al., "Communication-Efficient Learning of Deep Networks", arXiv:1602.05629).

    ::

        client: y <- x;   K times:   y <- y - eta (clip(grad f_i(y)) + wd y)
        server: u <- mean_i (x - y_i) / (eta K);   x <- x - gamma u

    With ``server_lr=None`` gamma is eta K, and x becomes the mean of the clients' models.
    """

    slug = "fedavg"
    paper = Paper("Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017, "1602.05629")

    unequal_steps = "average"
