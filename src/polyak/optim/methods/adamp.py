"""AdamP: Adam that does not inflate scale-invariant weights."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Betas, Eps, Lr, Nesterov, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.adaptive import adam
from polyak.optim.vocabulary.scale_free import Delta, WdRatio, project
from polyak.optim.vocabulary.weight import decay, descend


class AdamP(Method):
    """AdamP (Heo et al., arXiv:2006.08217): Adam whose step has no component along scale-invariant weights.

    ::

        u <- m^ / (sqrt(v^) + eps)   (m, v as in Adam)
        if |cos(g, p)| < delta / sqrt(dim) in every row, or as a whole:
            u <- u - <u, p> p / |p|^2, weight_decay * wd_ratio
        p <- p * (1 - lr * weight_decay) - lr * u

    Tested on rows (``shape[0]``, the output channels) first, then on the whole tensor. Tensors with fewer than 2
    dimensions are plain Adam. ``diagnostics()`` tells which are projected.

    Differs from the authors' code: channels_last and other strides work; nothing else. Sharding must keep rows
    whole.
    """

    slug = "adamp"
    family = "adaptive"
    paper = Paper(
        "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", 2020, "2006.08217"
    )
    vectors = ["adamp", "adamp-delta", "adamp-nesterov"]

    lr: Annotated[Lr, Range(1e-4, 3e-2)] = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Annotated[Eps, "added to the denominator, and the smallest norm of test and projection"] = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1), "decoupled weight decay"] = 0.0
    delta: Delta = 0.1
    wd_ratio: WdRatio = 0.1
    nesterov: Nesterov = False

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(adam(nesterov=options["nesterov"]), project(), decay("decoupled"), descend())
