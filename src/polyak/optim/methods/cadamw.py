"""Cautious AdamW."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Betas, Eps, Lr, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.adaptive import CorrectBias, EpsPlace, adam
from polyak.optim.vocabulary.signs import Masked, cautious
from polyak.optim.vocabulary.weight import decay, descend


class CAdamW(Method):
    """Cautious AdamW (Liang et al., arXiv:2411.16085): AdamW's step where it agrees in sign with the gradient.

    ::

        u <- m^ / (sqrt(v^) + eps)   (m, v as in Adam)
        u <- u * [u * g > 0] / mean([u * g > 0])
        p <- p * (1 - lr * weight_decay) - lr * u

    The mean is over one tensor, at least 1e-3. The memories are AdamW's; weight decay is never masked.

    Differs from the authors' code: eps is added after the bias correction, as torch's AdamW does;
    ``eps_form="before"`` gives the authors' numbers.
    """

    slug = "cadamw"
    family = "adaptive"
    paper = Paper("Cautious Optimizers: Improving Training with One Line of Code", 2024, "2411.16085")
    vectors = ["cadamw", "cadamw-epsafter"]

    lr: Annotated[Lr, Range(1e-4, 3e-2)] = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-6
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0
    correct_bias: CorrectBias = True
    eps_form: EpsPlace = "after"
    mask_scale: Masked = "mean"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        base = adam(eps_form=options["eps_form"], correct_bias=options["correct_bias"])
        # the signs of m, as the authors compare: those of m^ / (sqrt(v^) + eps) are the same, and dearer to find
        return chain(decay("decoupled"), base.at("exp_avg", cautious(options["mask_scale"])), descend())
