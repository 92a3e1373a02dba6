"""NAMO: Muon's direction with a step of Adam's, one size for each matrix."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import (
    HALF_OPEN_UNIT,
    POSITIVE,
    STATIC,
    STATIC_IF_ZERO,
    UNIT,
    Eps,
    Lr,
    Momentum,
    Paper,
    Range,
    WeightDecay,
    fills,
    hyper,
)
from polyak.memory.averages import debias, ema
from polyak.memory.matrix import as_matrix
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import MatrixMethod
from polyak.optim.vocabulary.adaptive import adam
from polyak.optim.vocabulary.balls import momentum_ema
from polyak.optim.vocabulary.matrices import QUINTIC, NsCoefficients, NsDtype, NsSteps, Polar
from polyak.optim.vocabulary.weight import decay, descend, subtract

ClampC = Annotated[float, UNIT, STATIC_IF_ZERO, "how far below the mean a column's step may be; 0: any"]


@factory
def sized_polar(
    per: Literal["tensor", "column"] = "tensor",
    polar: Polar = QUINTIC,
    scale: float = 0.2,
    clip_step: float | None = 1.0,
    clamped: bool = False,
) -> Rule:
    """NAMO's step: the polar factor of the direction U in the size ``lr |U| / sqrt(v)`` (arXiv:2602.17080).

    ``v`` averages the square of the gradient's norm, of the whole matrix or of each column; Adam's corrections are in
    the size. The same size, without the scale ``scale * sqrt(max(shape[:2]))``, goes to weight decay.

    Args:
        per: one size for the matrix, or one for each column of (shape[0], rest).
        polar: how the polar factor is found.
        scale: factor on the step, not on decay.
        clip_step: largest step, and largest decay; None: no limit.
        clamped: sizes of columns stay within ``clamp_c`` and ``1 / clamp_c`` of their mean.
    """
    limit = math.inf if clip_step is None else clip_step

    def scalars(h: Options, t: int) -> dict[str, Any]:
        step = h["lr"] * math.sqrt(debias(h["beta2"], t)) / debias(h["momentum"], t)
        found = {"rate2": 1 - h["beta2"], "eps": h["eps"], "step": step}
        # where decay would turn the weight's sign it stops at 0
        found["limit"] = min(limit, 1 / h["weight_decay"]) if h["weight_decay"] else limit
        return found | ({"clamp_c": h["clamp_c"]} if clamped else {})

    def capped(stack: Tensor, size: Tensor) -> Tensor:
        count, *shape = stack.shape
        factor = polar(stack.reshape(-1, *as_matrix(shape, "flatten")[1:]))
        largest = scale * math.sqrt(max(shape[:2]))
        return factor.mul_((size.view(count, 1, -1) * largest).clamp(max=limit).to(factor.dtype))

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        squares = x.g * x.g, x.u * x.u
        gg, uu = c.sum(*squares) if per == "tensor" else c.columns(*squares)
        v = ema(s.norm_sq, gg, c.rate2)
        ratio = uu.sqrt() / (v.sqrt() + c.eps)
        if clamped:
            mean = ratio.mean()
            ratio = torch.minimum(torch.maximum(ratio, c.clamp_c * mean), mean / c.clamp_c)
        size = c.step * ratio
        c.note("size", size.mean())
        return x.but(u=c.matrix(capped, x.u, along=(size,)), decay=size.clamp(max=c.limit)), {"norm_sq": v}

    holds = "average of the squared norm of the gradient" + (" of each column" if per == "column" else "")
    whole = Slot("norm_sq", holds, shape="scalar")
    slots = (whole if per == "tensor" else Slot("norm_sq", holds, "positive", "column"),)
    known = NAMO.reads("lr", "momentum", "beta2", "eps", "weight_decay")
    known += (hyper("clamp_c", ClampC, 0.75),) if clamped else ()
    return Rule(f"sized_polar_{per}", update, scalars, slots, known, timed=True)


class NAMO(MatrixMethod):
    """NAMO (arXiv:2602.17080): Muon whose step is as long as signal stands out of noise, with AdamW for the rest.

    ::

        M <- momentum * M + (1 - momentum) * G;  U <- (1 - momentum) * G + momentum * M
        v <- beta2 * v + (1 - beta2) * |G|^2
        a <- lr * sqrt(1 - beta2^t) / (1 - momentum^t) * |U| / (sqrt(v) + eps)
        W <- W * (1 - weight_decay * min(a, 1)) - min(a * scale * sqrt(max(A, B)), 1) * NewtonSchulz(U)
        (vectors, embeddings, heads: AdamW)

    (A, B) are the first two dimensions of the weight. Without noise it is Muon with "match_rms_adamw"; the more noise,
    the shorter |U| is against sqrt(v). Tensors with more than 2 dimensions are one matrix (shape[0], rest). The paper's
    own form is ``nesterov=False, ns_coefficients="svd", clip_step=None`` without the scale. The authors give AdamW the
    lr of the matrices, as the default of ``aux_lr`` does.

    Differs from the authors' code: weight decay stops at 0, as in NAMO-D's; tensors that do not have 2 or 4 dimensions
    are taken; Newton-Schulz runs in bfloat16 on CUDA, in float32 on the CPU.

    Raises:
        ValueError: an argument outside what is allowed, or a tensor with fewer than 2 dimensions in a matrix group.
    """

    slug = "namo"
    family = "matrix"
    paper = Paper("Adam Improves Muon: Adaptive Moment Estimation with Orthogonalized Momentum", 2026, "2602.17080")
    vectors = ["namo", "namo-bf16", "namo-svd"]

    lr: Annotated[Lr, Range(1e-3, 1e-1), "learning rate of the matrices"] = 1e-2
    momentum: Momentum = 0.95
    beta2: Annotated[float, HALF_OPEN_UNIT, "retention of the average of the squared norm"] = 0.99
    eps: Annotated[Eps, POSITIVE, "added to the root of the average"] = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-3, 1.0), "weight decay, in proportion to the step"] = 0.1
    nesterov: Annotated[bool, "orthogonalize one step ahead"] = True
    ns_steps: NsSteps = 5
    ns_coefficients: NsCoefficients = "original"
    ns_dtype: NsDtype = None
    scale: Annotated[float, POSITIVE, STATIC, "factor on the step, times sqrt(max(A, B))"] = 0.2
    clip_step: Annotated[float | None, POSITIVE, STATIC, "largest step and largest decay; None: no limit"] = 1.0
    aux_lr: Annotated[Lr, fills("lr"), Range(1e-4, 3e-2), "learning rate of the other groups"] = 1e-2
    aux_eps: Annotated[Eps, fills("eps"), "eps of AdamW, other groups, added before the bias correction"] = 1e-8

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        if not cls.is_main(options):
            return chain(decay("decoupled"), adam(eps_form="before"), descend())
        return chain(momentum_ema(options["nesterov"]), cls.sized(options), decay("fixed"), subtract())

    @classmethod
    def sized(cls, options: Options) -> Rule:
        """The rule that sizes the polar factor."""
        return sized_polar("tensor", Polar.of(options), options["scale"], options["clip_step"])
