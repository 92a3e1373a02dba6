"""AlphaAdam, as far as it is known: Adam's step where momentum and gradient agree, brought back to its length."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from polyak.declare import Betas, Eps, Interval, Lr, Paper, Range, WeightDecay
from polyak.memory.geometry import agreement
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.adaptive import adam
from polyak.optim.vocabulary.weight import decay, descend


@factory
def selective() -> Rule:
    """Keep the entries where the memory before the step agrees in sign with the present gradient (arXiv:2501.18094).

    What is left is multiplied by ``alpha = |u| / |kept u|``, at most ``alpha_max``, over one tensor. At the first step
    there is no memory, and all is kept. An interpretation, see :class:`AlphaAdam`. It comes behind :func:`adam`.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"first": float(t == 1), "alpha_max": h["alpha_max"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        if x.before is None:
            raise ValueError("selective compares with the memory before the step, which only adam() hands on")
        mask = agreement(x.before, x.g) + c.first  # a memory of zeros agrees with nothing
        kept = x.u * mask
        whole, part, share = c.sum(x.u * x.u, kept * kept, mask)
        alpha = torch.where(part == 0, 1.0, whole / torch.where(part == 0, 1.0, part)).sqrt().clamp(max=c.alpha_max)
        c.note("mask_share", share / c.numel)
        c.note("alpha", alpha)
        return x.but(u=alpha * kept), {}

    known = AlphaAdam.reads("alpha_max")
    return Rule("selective", update, scalars, hypers=known, timed=True, reads_memory=True, reads_before=True)


class AlphaAdam(Method):
    """AlphaAdam (arXiv:2501.18094), an interpretation: AdamW's step where the old momentum agrees with the gradient.

    ::

        (an interpretation: the published rule is not known in full)
        phi <- [m * g > 0]   (m before the step; all 1 at the first)
        u <- m^ / (sqrt(v^) + eps)   (m, v as in Adam, after the step)
        alpha <- min(alpha_max, |u| / |phi * u|)   (over one tensor)
        p <- p * (1 - lr * weight_decay) - lr * alpha * phi * u

    Neither the paper's text nor its code could be had, and its authors have withdrawn a version whose theorem lacked
    rigour. Published are that the mask compares the gradient with the momentum of the past, entry by entry, and that a
    dynamic alpha makes up for what is left out; that alpha keeps the length of the step, its bound and the form of
    weight decay are our reading. The vector is a transcription of it and no evidence of the paper's rule. Measured on
    small problems it gains nothing over AdamW.

    Where no entry agrees, only weight decay moves the tensor. C-AdamW masks with the new momentum instead, and divides
    by the share of what is kept.
    """

    slug = "alphaadam"
    family = "adaptive"
    paper = Paper(
        "AlphaAdam: Asynchronous Masked Optimization with Dynamic Alpha for Selective Updates", 2025, "2501.18094"
    )
    vectors = ["alphaadam-card"]
    evidence = "interpretation"

    lr: Annotated[Lr, Range(1e-4, 3e-2)] = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.01
    alpha_max: Annotated[float, Interval(1.0, high_open=True), "largest factor on what is kept"] = 10.0

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(decay("decoupled"), adam(), selective(), descend())
