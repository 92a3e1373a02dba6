"""Subgradients of convex functions: what Lion-K puts in the place of Lion's sign."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import POSITIVE, STATIC, Interval, hyper
from polyak.memory.geometry import sign_times_magnitude
from polyak.memory.matrix import polar
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, factory
from polyak.optim.vocabulary.lines import sums_of_rows

Kappa = Literal["l1", "l2sq", "l2", "lp", "dead", "huber", "pseudo", "logcosh", "group", "topk", "nuclear"]
Width = Annotated[float | None, POSITIVE, "threshold or width of dead, huber, pseudo and logcosh, as of a gradient"]
Power = Annotated[float | None, Interval(1.0, math.inf, True, True), "exponent of lp"]
Share = Annotated[float | None, Interval(0.0, 1.0, low_open=True), STATIC, "share of the entries that topk moves"]

READS = {"dead": "e", "huber": "e", "pseudo": "e", "logcosh": "e", "lp": "p", "topk": "k"}
KINDS: dict[str, Any] = {"e": Width, "p": Power, "k": Share}
ON_VECTORS: dict[str, Kappa] = {"group": "l2", "nuclear": "l1"}
"""What takes the place of those that are for matrices."""


def _over(z: Tensor, size: Tensor) -> Tensor:
    return z / torch.where(size == 0, 1.0, size)


def _lp(z: Tensor, c: Any) -> Tensor:
    size = c.sum(z.abs() ** c.p) ** c.root
    return _over(sign_times_magnitude(z, z.abs() ** c.less), size)


def _polar(stack: Tensor) -> Tensor:
    return polar(stack.flatten(2)).reshape(stack.shape)


SUBGRADIENTS: dict[str, Any] = {
    "l1": lambda z, c: torch.sign(z),
    "l2sq": lambda z, c: z,
    "l2": lambda z, c: _over(z, c.sum(z * z).sqrt()),
    "lp": _lp,
    "dead": lambda z, c: torch.where(z.abs() > c.e, torch.sign(z), 0.0),
    "huber": lambda z, c: (z / c.e).clamp(-1.0, 1.0),
    "pseudo": lambda z, c: z / (z * z + c.e * c.e).sqrt(),
    "logcosh": lambda z, c: torch.tanh(z / c.e),
    "group": lambda z, c: _over(z, sums_of_rows(z * z, c).sqrt()),
    "nuclear": lambda z, c: c.matrix(_polar, z),
}


def parameter_of(kappa: Kappa, h: Options) -> Any:
    """The hyperparameter that this function reads, if any.

    Raises:
        ValueError: it is not given.
    """
    name = READS.get(kappa)
    if name and h[name] is None:
        raise ValueError(f"kappa={kappa!r} needs {name}: it has no default")
    return h[name] if name else None


@factory
def subgradient(kappa: Kappa, share: float = 1.0, only_vectors: bool = False) -> Rule:
    """A subgradient ``u = K'(z)`` of a convex function at the direction (Lion-K, arXiv:2310.05898).

    ========  =============================  ==================================
    kappa     K(z)                           K'(z)
    ========  =============================  ==================================
    l1        sum |z|                        sign(z)
    l2sq      |z|_2^2 / 2                    z
    l2        |z|_2                          z / |z|_2
    lp        |z|_p                          sign(z) (|z| / |z|_p)^(p - 1)
    dead      sum max(|z| - e, 0)            sign(z) where |z| > e, else 0
    huber     Huber's function of width e    z / e, cut to [-1, 1]
    pseudo    sum sqrt(z^2 + e^2)            z / sqrt(z^2 + e^2)
    logcosh   e sum log cosh(z / e)          tanh(z / e)
    group     sum of the rows' norms         every row over its norm
    topk      sum of the largest |z|         sign(z) of the largest, else 0
    nuclear   sum of the singular values     the polar factor
    ========  =============================  ==================================

    0 where a norm is 0. "group" and "nuclear" see the tensor as (shape[0], rest), and are in the chain only of tensors
    with 2 dimensions or more.

    Args:
        kappa: the function.
        share: of topk: ``ceil(share * N)`` of N entries move; of equal ones those that come first.
        only_vectors: in the chain only of tensors with fewer than 2 dimensions.
    """

    def largest(stack: Tensor) -> Tensor:
        flat = stack.reshape(len(stack), -1)
        # sorted, as torch.topk promises no order among equals
        order = flat.abs().sort(dim=1, descending=True, stable=True).indices[:, : math.ceil(share * flat.shape[1])]
        return torch.zeros_like(flat).scatter(1, order, flat.gather(1, order).sign()).reshape(stack.shape)

    def scalars(h: Options, t: int) -> dict[str, Any]:
        value = parameter_of(kappa, h)
        if kappa == "lp":
            return {"p": value, "less": value - 1, "root": (value - 1) / value}
        return {} if value is None or kappa == "topk" else {"e": value}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(u=c.matrix(largest, x.u) if kappa == "topk" else SUBGRADIENTS[kappa](x.u, c)), {}

    def applies(shape: torch.Size) -> bool:
        return len(shape) < 2 if only_vectors else len(shape) >= 2 or kappa not in ON_VECTORS

    reads = READS.get(kappa)
    known = (hyper(reads, KINDS[reads], None),) if reads else ()
    signs = kappa == "l1"
    return Rule(
        f"subgradient_{kappa}", update, scalars, hypers=known, applies=applies, reads_memory=True,
        traits=("scale_free", "sign_memory", "signs") if signs else (),
        pointless_behind=(("signs", "the signs of signs are the same"),) if signs else (),
    )  # fmt: skip
