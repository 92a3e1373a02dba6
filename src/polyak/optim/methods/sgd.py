"""Stochastic gradient descent with Polyak's heavy ball."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import STATIC_IF_ZERO, Choice, Dampening, Lr, Momentum, Nesterov, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.balls import heavy_ball
from polyak.optim.vocabulary.weight import decay, descend


class SGD(Method):
    """Stochastic gradient descent with Polyak's heavy ball or Nesterov momentum, as ``torch.optim.SGD``.

    ::

        b <- momentum * b + (1 - dampening) * (g + weight_decay * p)
        p <- p - lr * b

    The buffer starts as the first gradient, undampened; momentum 0 keeps none. ``nesterov`` steps along
    ``g + momentum * b``. Numbers equal torch's; its checkpoints load and ours load there.

    Raises:
        ValueError: an argument outside what is allowed; nesterov without momentum or with dampening.
    """

    slug = "sgd"
    family = "momentum"
    paper = Paper(
        "Some methods of speeding up the convergence of iteration methods", 1964,
        url="https://doi.org/10.1016/0041-5553(64)90137-5",
    )  # fmt: skip
    vectors = ["torch.optim.SGD", "reality-check-nesterov"]
    evidence = "independent code"

    lr: Annotated[Lr, Range(1e-3, 1.0)] = 1e-3
    momentum: Annotated[Momentum, STATIC_IF_ZERO, Choice((0.8, 0.9, 0.95))] = 0.0
    dampening: Dampening = 0.0
    weight_decay: Annotated[WeightDecay, Range(1e-6, 1e-2), "L2 regularization"] = 0.0
    nesterov: Annotated[Nesterov, Choice((True, False))] = False

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        if options["momentum"] == 0:
            return chain(decay("coupled"), descend())
        ball = heavy_ball(nesterov=options["nesterov"], dampening=options["dampening"] != 0)
        return chain(decay("coupled"), ball, descend())

    def check_options(self, group: Options) -> None:
        """Nesterov momentum is defined for positive momentum without dampening."""
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(f"{self._owner()}: nesterov needs momentum > 0 and dampening = 0")
