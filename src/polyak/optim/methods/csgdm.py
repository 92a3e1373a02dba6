"""Cautious SGD with momentum."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Choice, Dampening, Lr, Momentum, Nesterov, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.balls import heavy_ball
from polyak.optim.vocabulary.signs import Masked, cautious
from polyak.optim.vocabulary.weight import decay, descend


class CSGDM(Method):
    """Cautious SGD with momentum (arXiv:2411.16085; timm's form): heavy ball where it agrees with the gradient.

    ::

        b <- momentum * b + (1 - dampening) * g; u <- b
        u <- u * [u * g > 0] / mean([u * g > 0])
        p <- p * (1 - lr * weight_decay) - lr * u

    The buffer starts as the first gradient, undampened; ``nesterov`` masks and steps along ``g + momentum * b``.
    Weight decay is decoupled and never masked.
    """

    slug = "csgdm"
    family = "momentum"
    paper = Paper("Cautious Optimizers: Improving Training with One Line of Code", 2024, "2411.16085")
    vectors = ["csgdm"]
    evidence = "independent code"

    lr: Annotated[Lr, Range(1e-3, 1.0)] = 1e-2
    momentum: Annotated[Momentum, Choice((0.8, 0.9, 0.95))] = 0.9
    dampening: Dampening = 0.0
    weight_decay: Annotated[WeightDecay, Range(1e-6, 1e-2)] = 0.0
    nesterov: Nesterov = False
    mask_scale: Masked = "mean"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        ball = heavy_ball(nesterov=options["nesterov"], dampening=options["dampening"] != 0)
        return chain(decay("decoupled"), ball, cautious(options["mask_scale"]), descend())
