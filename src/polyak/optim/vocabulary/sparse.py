"""SR-STE: weight decay of what an N:M mask leaves out."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from polyak.declare import NON_NEGATIVE, STATIC, Interval, hyper
from polyak.memory.sparsity import n_of_m
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, factory

Kept = Annotated[int, Interval(1, 2**15), STATIC, "weights that are kept of each m consecutive ones"]
GroupSize = Annotated[int, Interval(2, 2**15), STATIC, "consecutive weights of a row, or input channels, in a group"]
SrLambda = Annotated[float, NON_NEGATIVE, "decay of the weights that the mask leaves out, added to the gradient"]


def can_be_masked(shape: torch.Size, m: int) -> bool:
    """Whether the inputs of a weight of this shape fall into whole groups of ``m``."""
    return len(shape) >= 2 and shape[1] % m == 0


@factory
def sr_ste(n: int = 2, m: int = 4) -> Rule:
    """Couple a decay of the masked weights: ``u <- u + sr_lambda * (1 - P(p)) * p`` (SR-STE, arXiv:2102.04010).

    ``P`` keeps of each ``m`` consecutive inputs the ``n`` largest weights, see :func:`polyak.memory.n_of_m`. The
    gradient is to be that at ``P(p) * p``, straight through the mask: :func:`polyak.optim.sparsify` sees to that.
    Tensors whose inputs do not fall into groups of ``m`` are left alone.

    Raises:
        ValueError: unless 1 <= n < m.
    """
    if not 1 <= n < m:
        raise ValueError(f"sr_ste: n must be in 1 to m - 1 = {m - 1}, got {n!r}")

    def left_out(stack: Tensor) -> Tensor:
        return stack * (1 - n_of_m(stack, n, m, dim=2))

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"sr_lambda": h["sr_lambda"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(u=x.u + c.sr_lambda * c.matrix(left_out, x.p)), {}

    known = (hyper("sr_lambda", SrLambda, 2e-4),)
    return Rule("sr_ste", update, scalars, hypers=known, applies=lambda shape: can_be_masked(shape, m))
