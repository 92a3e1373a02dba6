"""AM-AdamW: AdamW whose first retention rate follows from two planes under the loss."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Lr, Momentum, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.adaptive_memory import (
    LargestBeta,
    PlaneHeight,
    Pull,
    RootEps,
    plane_adam,
    plane_momentum,
)
from polyak.optim.vocabulary.weight import decay, descend


class AMAdamW(Method):
    """AM-AdamW, adaptive memory momentum over Adam's root (Topollai and Choromanska, arXiv:2510.04988).

    ::

        v <- beta2 * v + (1 - beta2) * g^2
        P <- (1 - bmax * product of all beta) * (sqrt(v / (1 - beta2^t)) + eps);  M <- 1 / (P * (1 + lam * P))
        gap <- last lr * <g, d / P + wd * p>
        beta <- ((1 + wd * lr) * gap / lr - <d - g, M * (g + lam * P * d)> - wd * <p, d - g>) / <d - g, M * (d - g)>
        beta <- clip(beta, 0, bmax)   (bmax at first)
        d <- ((1 - beta) * g + (lam * P + beta) * d) / (1 + lam * P)
        p <- p * (1 - lr * wd) - lr * d / P

    with wd = ``weight_decay``. beta is one a tensor, and P corrects the bias of ``d``. Other heights of the memory's
    plane than "linear" are guesses from before the paper's was known: AM-SGD in Adam's metric, with one beta for all,
    which knows nothing of the decay; see :class:`AMSGD`. beta is in ``diagnostics()``.

    There is no code of the authors; the equations are those of an independent implementation. With lam = 0 and beta
    held at bmax this is AdamW.

    Raises:
        ValueError: an argument outside what is allowed, a bmax of 1 with "linear" or "loss", or ``lam``, ``bmax`` or
            ``height`` that are not the same in all groups.
    """

    slug = "am_adamw"
    family = "step size"
    paper = Paper(
        "Adaptive Memory Momentum via a Model-Based Framework for Deep Learning Optimization", 2025, "2510.04988"
    )
    vectors = ["am-adamw-card"]
    evidence = "own transcription"
    one_for_all = ("lam", "bmax", "height")

    lr: Annotated[Lr, Range(1e-4, 1e-1)] = 1e-3
    lam: Pull = 0.1
    bmax: LargestBeta = 0.89
    beta2: Annotated[Momentum, "retention of the squares"] = 0.999
    eps: RootEps = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1), "decoupled weight decay"] = 0.0
    height: PlaneHeight = "linear"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        height = options["height"]
        memory = plane_adam() if height == "linear" else plane_momentum(height, True)
        return chain(memory, decay("decoupled"), descend())

    def check_options(self, group: Options) -> None:
        """With a weight of 1 the memory would never change again."""
        if group["bmax"] >= 1 and group["height"] in ("linear", "loss"):
            raise ValueError(f"{self._owner()}: bmax must be below 1 with height={group['height']!r}")
