"""Adaptive braking: momentum for gradients that come late."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Choice, Lr, Momentum, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.balls import heavy_ball
from polyak.optim.vocabulary.braking import Granular, NormEps, Rho, braked
from polyak.optim.vocabulary.weight import decay, descend


class AdaptiveBraking(Method):
    """Adaptive braking (Venigalla et al., arXiv:2007.01397), an interpretation: SGD that stays stable under delay.

    ::

        a <- <g, v> / max(|g| |v|, eps)
        v <- momentum * v + (1 - rho * a) * g
        p <- p - lr * v

    A gradient along the velocity is shrunk, one against it enlarged; ``rho=0`` is SGD with momentum. ``nesterov`` steps
    along ``(1 - rho * a) * g + momentum * v``. :class:`polyak.optim.drivers.Delayed` tries it at a delay.

    No code of the authors is public, and the constants of the paper were not at hand: the form of the scaling, ``rho``
    and the granularity are an interpretation.
    """

    slug = "adaptive_braking"
    family = "momentum"
    paper = Paper("Adaptive Braking for Mitigating Gradient Delay", 2020, "2007.01397")
    vectors = ["adaptive-braking-card"]
    evidence = "interpretation"

    lr: Annotated[Lr, Range(1e-3, 1.0)] = 0.1
    momentum: Annotated[Momentum, Choice((0.8, 0.9, 0.95))] = 0.9
    rho: Annotated[Rho, Choice((0.5, 1.0, 2.0))] = 1.0
    eps: NormEps = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-6, 1e-2), "L2 regularization"] = 0.0
    nesterov: Annotated[bool, "step along the scaled gradient and the next velocity"] = False
    granularity: Granular = "tensor"
    decay_after: Annotated[bool, "add the decay behind the scaling, not before the cosine"] = False
    clamp: Annotated[bool, "never turn the gradient round, as rho > 1 may"] = False

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        late, ball = options["decay_after"], heavy_ball(options["nesterov"])
        brakes = braked(ball, "momentum_buffer", options["granularity"], late, options["clamp"])
        return chain(*(() if late else (decay("coupled"),)), brakes, descend())
