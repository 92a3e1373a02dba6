"""Random scaling: momentum whose steps have random lengths."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from torch import Tensor

from polyak.declare import NON_NEGATIVE, UNIT, Betas, Choice, Eps, Lr, Paper, Range, WeightDecay
from polyak.memory.averages import heavy_ball
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.adaptive import adam
from polyak.optim.vocabulary.balls import momentum_ema
from polyak.optim.vocabulary.scaling import Distribution, MaxScale, Scales, Seed, random_scaling
from polyak.optim.vocabulary.weight import decay, descend, subtract, times_lr

Base = Annotated[Literal["sgdm", "adamw", "ogd"], "what is scaled"]


@factory
def discounted_descent() -> Rule:
    """Discounted online gradient descent (arXiv:2405.09742): ``D <- (D + u) * momentum / (1 + lr * mu)``; reads ``D``.

    Behind :func:`times_lr`, so that ``u`` is ``lr * g``; ``D`` is subtracted from the weight.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"kept": h["momentum"] / (1 + h["lr"] * h["mu"])}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        delta = heavy_ball(s.delta, x.u, c.kept, c.kept)
        return x.but(u=delta), {"delta": delta}

    slots = (Slot("delta", "the learner's step, its sign turned", "signed"),)
    return Rule("discounted_descent", update, scalars, slots, RandomScaling.reads("lr", "momentum", "mu"))


class RandomScaling(Method):
    """Random scaling (Zhang and Cutkosky, arXiv:2405.09742): each step is as long as a random number of mean 1 says.

    ::

        s ~ Exp(1), one a step for all tensors
        sgdm:   m <- momentum * m + (1 - momentum) * g;  p <- p - s * lr * (m + weight_decay * p)
        adamw:  p <- p - s * lr * (Adam(g) + weight_decay * p)
        ogd:    D <- (D - lr * g) * momentum / (1 + lr * mu);  p <- p + s * (D - lr * weight_decay * p)

    "sgdm" has no bias correction; "ogd" is the learner of the theory (Exponentiated O2NC), and there momentum may be 1.
    Any other chain is scaled by the rule ``random_scaling()`` at its end. s follows from ``seed`` and the number
    of steps: give all ranks one seed. Steps of more than 5 times the mean come in 0.7 % of the draws; ``max_scale``
    cuts them. The theory's output is an average of the weights, see :class:`polyak.teachers.EMA`. In practice random
    scaling is about as good as none.

    Differs from the author's code: no generator is drawn from, and numbers are those of float64.
    """

    slug = "random_scaling"
    one_for_all = ("distribution", "max_scale", "seed", "scales")
    family = "step size"
    paper = Paper("Random Scaling and Momentum for Non-smooth Non-convex Optimization", 2024, "2405.09742")
    vectors = ["random-scaling-sgdm", "random-scaling-adamw", "random-scaling-o2nc-ogd"]

    lr: Annotated[Lr, Range(1e-3, 1.0)] = 0.1
    base: Base = "sgdm"
    momentum: Annotated[float, UNIT, Choice((0.8, 0.9, 0.95)), "retention of sgdm and of ogd"] = 0.9
    betas: Annotated[Betas, "retention rates where base is adamw"] = (0.9, 0.999)
    eps: Annotated[Eps, "added to the root where base is adamw"] = 1e-8
    mu: Annotated[float, NON_NEGATIVE, "strength of the learner's regularization, where base is ogd"] = 0.0
    weight_decay: Annotated[WeightDecay, Range(1e-6, 1e-1), "decoupled, and scaled too"] = 0.0
    distribution: Distribution = "exponential"
    max_scale: MaxScale = None
    seed: Seed = 0
    scales: Scales = None

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        if options["base"] == "ogd":
            return chain(decay("decoupled"), times_lr(), discounted_descent(), subtract(), random_scaling())
        base = adam() if options["base"] == "adamw" else momentum_ema(nesterov=False)
        return chain(decay("decoupled"), base, descend(), random_scaling())

    def check_options(self, group: Options) -> None:
        """An average that retains all would never move."""
        if group["base"] == "sgdm" and group["momentum"] == 1:
            raise ValueError(f"{self._owner()}: momentum must be below 1 where base='sgdm', got {group['momentum']!r}")
