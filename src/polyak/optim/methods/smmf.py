"""SMMF: Adam's two averages, kept as the row and column sums of a near-square matrix."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import STATIC_IF_ZERO, UNIT, Choice, Eps, Interval, Lr, Paper, Range, WeightDecay
from polyak.memory.averages import ema
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.weight import decay, descend

DecayMode = Annotated[Literal["adamw", "adam"], "decoupled weight decay, or added to the gradient"]


def _is_more_than_a_line(shape: torch.Size) -> bool:
    return sum(size > 1 for size in shape) != 1


@factory
def fading_adam(momentum: bool = True, lines: bool = True) -> Rule:
    """Adam's direction with averages whose rates follow the step, uncorrected (SMMF, arXiv:2412.08894).

    ``m <- b * m + (1 - b) * g`` with ``b = beta * growth_rate^(t - 1)``; ``v <- (1 - a) * v + a * g^2`` with
    ``a = t^decay_rate``; reads out ``m / (sqrt(v) + eps)``.

    Args:
        momentum: off reads out the gradient instead of m.
        lines: tensors with one dimension above 1 may be kept in fewer bytes too.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        own = {"rate1": 1 - h["beta"] * h["growth_rate"] ** (t - 1)} if momentum else {}
        return {**own, "rate2": float(t) ** h["decay_rate"], "eps": h["eps"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        v = ema(s.exp_avg_sq, x.u * x.u, c.rate2)
        m = ema(s.exp_avg, x.u, c.rate1) if momentum else x.u
        new = {"exp_avg": m, "exp_avg_sq": v} if momentum else {"exp_avg_sq": v}
        return x.but(u=m / (v.sqrt() + c.eps)), new

    where: dict[str, Any] = {} if lines else {"narrow": _is_more_than_a_line}
    slots: tuple[Slot, ...] = (Slot("exp_avg_sq", "average of the gradient's square", "positive", **where),)
    if momentum:
        slots = (Slot("exp_avg", "average of the gradient", "signed", **where), *slots)
    known = SMMF.reads("eps", "decay_rate", *(("beta", "growth_rate") if momentum else ()))
    return Rule("fading_adam", update, scalars, slots, known, timed=True)


class SMMF(Method):
    """Square-matricized momentum factorization (arXiv:2412.08894): Adam in about a bit a weight.

    ::

        b <- beta * growth_rate^(t - 1);  a <- t^decay_rate
        m <- b * m + (1 - b) * g;  v <- (1 - a) * v + a * g^2
        p <- p * (1 - lr * weight_decay) - lr * m / (sqrt(v) + eps)
        m, v kept as row and column sums of a near-square matrix, and a bit for each sign of m

    The step reads m and v before they are factored. ``beta=None`` takes the gradient for m. ``decay_rate`` -0.5 is
    for convolutional networks, -0.8 for transformers; despite its name ``growth_rate`` lets the momentum fade. Factors
    are ``state_storage="factored"`` of this library, and any other is the same method with memories kept so.

    Differs from the authors' code: a tensor whose factors would hold half of its numbers or more is kept as it is,
    exactly (a prime number of entries, small tensors); so are m and v of a tensor that is sharded over ranks. Signs
    take a bit each, as in the paper, and not a byte. ``weight_decay_mode="adam"`` decays, which it does not there.
    """

    slug = "smmf"
    family = "robust and lean"
    paper = Paper(
        "SMMF: Square-Matricized Momentum Factorization for Memory-Efficient Optimization", 2024, "2412.08894"
    )
    vectors = ["smmf", "smmf-novec"]
    state_storage = "factored"

    lr: Annotated[Lr, Range(1e-4, 1e-2)] = 1e-3
    beta: Annotated[float | None, UNIT, STATIC_IF_ZERO, "retention of the average at first; None: no average"] = 0.9
    eps: Eps = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0
    decay_rate: Annotated[
        float, Interval(-1.0, 0.0), Choice((-0.5, -0.8)), "exponent of the step in the rate of the squares"
    ] = -0.5
    growth_rate: Annotated[float, UNIT, "factor on beta, every step"] = 0.999
    vector_reshape: Annotated[bool, "factor tensors with one dimension above 1 too"] = True
    weight_decay_mode: DecayMode = "adamw"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        form = decay("decoupled" if options["weight_decay_mode"] == "adamw" else "coupled")
        return chain(form, fading_adam(bool(options["beta"]), options["vector_reshape"]), descend())
