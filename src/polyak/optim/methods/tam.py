"""Torque-aware momentum: the gradient is damped by its smoothed angle to the momentum."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from polyak.declare import Choice, Eps, Lr, Momentum, Paper, Range, WeightDecay
from polyak.memory.averages import heavy_ball as roll
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.torque import COSINE, DecayRate, Scope, torque
from polyak.optim.vocabulary.weight import decay, descend


@factory
def torque_aware(everywhere: bool = False) -> Rule:
    """Torque-aware momentum: ``m <- momentum * m + (eps + d) * u`` with ``d = (1 + s) / 2``, see :func:`torque`."""

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"momentum": h["momentum"], "rate": 1 - h["decay_rate"], "half": 0.5 + h["eps"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        cosine = torque(s.momentum_buffer, x.u, s.cosine_avg, c.rate, c, everywhere)
        damping = c.half + 0.5 * cosine
        c.note("cosine", cosine)
        c.note("damping", damping)
        m = roll(s.momentum_buffer, x.u, c.momentum, damping)
        return x.but(u=m), {"momentum_buffer": m, "cosine_avg": cosine}

    slots = (Slot("momentum_buffer", "the damped heavy ball", "signed"), COSINE)
    return Rule("torque_aware", update, scalars, slots, TAM.reads("momentum", "decay_rate", "eps"))


class TAM(Method):
    """Torque-aware momentum (arXiv:2412.18790).

    ::

        S <- <m, g> / (|m| |g|); s <- decay_rate * s + (1 - decay_rate) * S; d <- (1 + s) / 2
        m <- momentum * m + (eps + d) * g
        p <- p - lr * m

    The cosine is that of the previous momentum and the gradient, over one tensor; it is 0 where either is zero, and
    not absorbed where it is not finite. The first step is half of SGD's. In noise d is about 1/2, so an lr twice that
    of SGD with momentum gives the same step. With ``scope="global"`` every tensor keeps a copy of s. There is no
    authors' code; pytorch_optimizer's TAM is another rule.
    """

    slug = "tam"
    family = "momentum"
    paper = Paper("Torque-Aware Momentum", 2024, "2412.18790")
    vectors = ["tam-card"]
    evidence = "own transcription"

    lr: Annotated[Lr, Range(2e-3, 2.0)] = 1e-2
    momentum: Annotated[Momentum, Choice((0.8, 0.9, 0.95))] = 0.9
    decay_rate: DecayRate = 0.9
    eps: Annotated[Eps, "added to the damping"] = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-6, 1e-2), "added to the gradient before the cosine"] = 0.0
    scope: Scope = "tensor"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(decay("coupled"), torque_aware(options["scope"] == "global"), descend())
