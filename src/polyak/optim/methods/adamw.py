"""AdamW, exactly as in ``torch.optim``."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.methods.adam import Adam
from polyak.optim.vocabulary.adaptive import adam
from polyak.optim.vocabulary.weight import decay, descend


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101), as ``torch.optim.AdamW``.

    ::

        m <- b1 * m + (1 - b1) * g
        v <- b2 * v + (1 - b2) * g^2
        p <- p * (1 - lr * weight_decay) - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    """

    slug = "adamw"
    family = "adaptive"
    paper = Paper("Decoupled Weight Decay Regularization", 2017, "1711.05101")
    vectors = ["torch.optim.AdamW", "reality-check-adamw"]
    evidence = "independent code"

    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1), "decoupled weight decay"] = 1e-2

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(decay("decoupled"), adam(amsgrad=options["amsgrad"]), descend())
