"""AuON: momentum divided by one number that grows with its spikes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import Betas, Eps, Interval, Lr, Momentum, Paper, Range, WeightDecay, fills, hyper
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, factory
from polyak.optim.method import MatrixMethod
from polyak.optim.vocabulary.adaptive import adam
from polyak.optim.vocabulary.balls import momentum_ema
from polyak.optim.vocabulary.weight import decay, descend

Variant = Literal["head", "paper"]
Gamma = Annotated[
    float, Interval(0.0, 40.0, low_open=True), Range(0.5, 4.0), "length of what the brake is read from; float32 ends it"
]
NORM_EPS, RMS_EPS = 1e-7, 1e-8


@factory
def brake(normalized: bool = False) -> Rule:
    """Divide the direction U by ``r = sqrt(mean(cosh(gamma * U / |U|)^2))`` over the tensor (arXiv:2509.24320).

    For N entries r is between ``sqrt(1 + gamma^2 / N)``, about 1, and ``cosh(gamma)`` where N is 1.

    Args:
        normalized: divide by ``|U|`` too, and multiply by ``sqrt(max(1, rows / columns))`` of (shape[0], rest).
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"gamma": h["gamma"]}

    def length(x: Flow, c: Context) -> tuple[Tensor, Tensor]:
        """That of the direction, and rows over columns where asked for."""
        if not normalized:
            total: Tensor = c.sum(x.u * x.u)
            return total.sqrt(), total
        # a tensor: what is made of a plain number would be compiled for that number alone
        columns = x.u.new_full((), x.u.shape[-1], dtype=torch.float64)
        return c.rows(x.u * x.u).whole[0].sqrt(), c.numel / columns.square()

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        size, aspect = length(x, c)
        unit = x.u * (1 / (size + NORM_EPS))
        r = c.mean(torch.cosh(c.gamma * unit).square()).sqrt()
        c.note("brake", r)
        if normalized:
            return x.but(u=unit * (aspect.clamp(min=1).sqrt() / (r + RMS_EPS))), {}
        return x.but(u=x.u * (1 / (r + RMS_EPS))), {}

    return Rule("brake", update, scalars, hypers=(hyper("gamma", Gamma, 1.5),), reads_memory=True)


class AuON(MatrixMethod):
    """AuON (arXiv:2509.24320): momentum with a brake in linear time, and AdamW for what is no matrix.

    ::

        M <- momentum * M + (1 - momentum) * G;  U <- (1 - momentum) * G + momentum * M
        r <- sqrt(mean(cosh(gamma * U / |U|)^2))
        W <- W * (1 - lr * weight_decay) - lr * U / r
        (vectors, embeddings, heads: AdamW)

    This is the authors' repository at its head, ``variant="head"``, and **it does not normalize**: the step has the
    length of the momentum, and since r is about 1 for a tensor of more than a few entries, it is in effect Nesterov
    momentum SGD. ``variant="paper"`` is the paper's first version and script, with ``gamma=1``: the step
    ``lr * sqrt(max(1, A/B)) * U / |U| / r``, in effect normalized momentum. Neither makes singular values equal.
    With "head" a matrix group may hold tensors of any shape, as in the authors' code. Aux groups have the authors'
    Adam.

    Differs from the authors' code: ``p.grad`` is left alone, a momentum of 1 is refused; the paper's script stepped 2-d
    tensors alone, in bfloat16.

    Raises:
        ValueError: an argument outside what is allowed, or with ``variant="paper"`` a tensor with fewer than 2
            dimensions in a matrix group.
    """

    slug = "auon"
    family = "matrix"
    paper = Paper("AuON: A Linear-time Alternative to Orthogonal Momentum Updates", 2025, "2509.24320")
    vectors = ["auon", "auon-v1"]

    lr: Annotated[Lr, Range(1e-2, 1.0), "learning rate of the matrices"] = 0.24
    momentum: Momentum = 0.95
    nesterov: Annotated[bool, "read the momentum one step ahead"] = True
    gamma: Gamma = 1.5
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0
    variant: Annotated[Variant, "the repository's head, or the paper, which normalizes"] = "head"
    aux_lr: Annotated[Lr, fills("lr"), Range(1e-4, 3e-2), "learning rate of the other groups"] = 8e-3
    aux_betas: Annotated[Betas, fills("betas"), "retention rates of AdamW, other groups"] = (0.8, 0.95)
    aux_eps: Annotated[Eps, fills("eps"), "eps of AdamW, other groups"] = 1e-10

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        if not cls.is_main(options):
            return chain(decay("decoupled"), adam(), descend())
        memory = momentum_ema(options["nesterov"])
        return chain(memory, *cls.read_out(options), decay("decoupled"), descend())

    @classmethod
    def read_out(cls, options: Options) -> tuple[Rule, ...]:
        """The rules behind the momentum."""
        return (brake(options["variant"] == "paper"),)

    def check_options(self, group: Options) -> None:
        """Of the paper's groups matrices; the head's brake has no need of them."""
        if group["variant"] == "paper":
            super().check_options(group)
