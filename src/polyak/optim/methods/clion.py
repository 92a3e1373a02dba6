"""Cautious Lion."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import POSITIVE, STATIC, UNIT, Paper
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.methods.lion import Lion, lion
from polyak.optim.vocabulary.signs import Masked, cautious
from polyak.optim.vocabulary.weight import decay, descend


class CLion(Lion):
    """Cautious Lion (Liang et al., arXiv:2411.16085): Lion's signs where they agree with the gradient.

    ::

        u <- sign(b1 * m + (1 - b1) * g)
        phi <- [u * g > 0]; u <- u * phi * N / (sum(phi) + 1)
        p <- p * (1 - lr * weight_decay) - lr * u
        m <- b2 * m + (1 - b2) * g

    ``mask_scale="count"`` is the authors'; "mean" is better for tensors of one element, which "count" halves.
    """

    slug = "clion"
    family = "sign"
    paper = Paper("Cautious Optimizers: Improving Training with One Line of Code", 2024, "2411.16085")
    vectors = ["clion", "clion-mean", "clion-factor"]

    betas = (0.95, 0.98)
    mask_scale: Masked = "count"
    opposed: Annotated[float, UNIT, STATIC, "weight of entries that disagree (lucidrains' cautious_factor)"] = 0.0
    mask_floor: Annotated[float, POSITIVE, STATIC, 'smallest mean of the mask, read with mask_scale="mean"'] = 1e-3

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        form = decay("initial_lr" if options["decay_relative_to_initial_lr"] else "decoupled")
        mask = cautious(options["mask_scale"], options["mask_floor"], options["opposed"])
        return chain(form, lion(), mask, descend())
