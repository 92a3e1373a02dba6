"""AM-SGD: momentum whose retention follows from two planes under the loss."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Lr, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.adaptive_memory import LargestBeta, PlaneHeight, Pull, plane_momentum
from polyak.optim.vocabulary.weight import decay, descend


class AMSGD(Method):
    """AM-SGD, adaptive memory momentum (Topollai and Choromanska, arXiv:2510.04988).

    ::

        g <- g + weight_decay * p
        beta <- clip(((1 + lam) * gap / lr - <d - g, g + lam * d>) / |d - g|^2, 0, bmax)
        d <- ((beta + lam) * d + (1 - beta) * g) / (1 + lam)   (g at first)
        p <- p - lr * d

    beta is one for the whole model. ``gap`` is how far the plane of the memory lies above the loss: "linear", of the
    paper's stochastic method, is ``lr * <g, d>`` with the lr of the last step, so that for a constant lr
    ``beta = clip((1 + lam) * |g|^2 / |d - g|^2 - lam, 0, bmax)``. No loss is needed then. "loss" is the last loss less
    this one. "aggregate", "anchored" and "shared" are guesses from before the paper's height was known; the first two
    need the loss. beta, and what of ``d`` is kept, ``(beta + lam) / (1 + lam)``, are in ``diagnostics()``.

    There is no code of the authors; the equations are confirmed by a digest and an independent implementation. Groups
    of other lr count in the sums by their lr, which is our reading.

    Raises:
        ValueError: an argument outside what is allowed, a bmax of 1 with "linear" or "loss", or ``lam``, ``bmax`` or
            ``height`` that are not the same in all groups.
    """

    slug = "am_sgd"
    family = "step size"
    paper = Paper(
        "Adaptive Memory Momentum via a Model-Based Framework for Deep Learning Optimization", 2025, "2510.04988"
    )
    vectors = ["am-sgd-card", "am-sgd-anchored-card", "am-sgd-shared-card"]
    evidence = "own transcription"
    one_for_all = ("lam", "bmax", "height")

    lr: Annotated[Lr, Range(1e-3, 1e1)] = 0.1
    lam: Pull = 0.1
    bmax: LargestBeta = 0.9
    weight_decay: Annotated[WeightDecay, Range(1e-6, 1e-2), "L2 regularization"] = 0.0
    height: PlaneHeight = "linear"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(decay("coupled"), plane_momentum(options["height"]), descend())

    def check_options(self, group: Options) -> None:
        """With a weight of 1 the memory would never change again."""
        if group["bmax"] >= 1 and group["height"] in ("linear", "loss"):
            raise ValueError(f"{self._owner()}: bmax must be below 1 with height={group['height']!r}")
