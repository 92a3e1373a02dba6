"""Adam, exactly as in ``torch.optim``."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Betas, Eps, Lr, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.adaptive import Amsgrad, adam
from polyak.optim.vocabulary.weight import decay, descend


class Adam(Method):
    """Adam (Kingma and Ba, arXiv:1412.6980), as ``torch.optim.Adam``: L2 regularization, eps outside the root.

    ::

        g <- g + weight_decay * p
        m <- b1 * m + (1 - b1) * g
        v <- b2 * v + (1 - b2) * g^2
        p <- p - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    """

    slug = "adam"
    family = "adaptive"
    paper = Paper("Adam: A Method for Stochastic Optimization", 2014, "1412.6980")
    vectors = ["torch.optim.Adam"]
    evidence = "independent code"

    lr: Annotated[Lr, Range(1e-4, 3e-2)] = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-6, 1e-2), "added to the gradient, times the weight"] = 0.0
    amsgrad: Amsgrad = False

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(decay("coupled"), adam(amsgrad=options["amsgrad"]), descend())
