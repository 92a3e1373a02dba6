"""Rules about norms: projection away from scale-invariant weights, and clipping."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from polyak.declare import NON_NEGATIVE, UNIT, Eps, MaxGradNorm, hyper
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, factory

Delta = Annotated[float, NON_NEGATIVE, "threshold of the cosine test, times 1/sqrt(columns); 0 switches it off"]
WdRatio = Annotated[float, UNIT, "factor on the weight decay of scale-invariant weights"]


def _cosine(gw: Tensor, gg: Tensor, ww: Tensor, eps: Tensor) -> Tensor:
    return gw.abs() / (gg.sqrt().clamp(min=eps) * ww.sqrt().clamp(min=eps))


@factory
def project(only_decay: bool = False) -> Rule:
    """Remove from the direction its component along a weight that looks scale invariant (arXiv:2006.08217).

    A weight does if its gradient is nearly orthogonal to it: in all rows (``shape[0]``) or, failing that, as a whole,
    ``|cos(g, p)| < delta / sqrt(columns)``. Rows, or the whole, are then projected, and weight decay is weakened by
    ``wd_ratio``. Tensors with fewer than 2 dimensions are left alone. The hyperparameter ``eps`` is the smallest norm
    of the test, and is added to the weight's norm in the projection.

    Args:
        only_decay: weaken the decay and leave the direction, which something else has projected.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"delta": h["delta"], "wd_ratio": h["wd_ratio"], "eps": h["eps"]}

    def worst(gw: Tensor, gg: Tensor, ww: Tensor, uw: Tensor, eps: Tensor) -> Tensor:
        return _cosine(gw, gg, ww, eps)

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        # As a column of its own, whose sum over a row is itself: a row function sees sums and no coefficients.
        eps = torch.ones_like(x.p[..., :1], dtype=torch.float64) * c.eps
        r = c.rows(x.g * x.p, x.g * x.g, x.p * x.p, x.u * x.p, eps, worst=worst)
        # a tensor: the root of a plain number would be compiled for that number alone
        columns = x.p.new_full((), x.p.shape[-1], dtype=torch.float64)
        _, _, ww_row, uw_row, _ = r.row
        gw, gg, ww, uw, _ = r.whole
        by_row = r.worst < c.delta / columns.sqrt()
        by_layer = ~by_row & (_cosine(gw, gg, ww, c.eps) < c.delta / c.numel.sqrt())
        square = torch.where(by_row, (ww_row.sqrt() + c.eps).square(), (ww.sqrt() + c.eps).square())
        radial = torch.where(by_row, uw_row, uw) / square
        found = by_row | by_layer
        c.note("projected", found.to(x.u.dtype))
        u = x.u if only_decay else x.u - torch.where(found, radial, 0.0) * x.p
        factor = torch.where(found, c.wd_ratio.to(x.u.dtype), 1.0)
        return x.but(u=u, decay=factor), {}

    def is_matrix(shape: torch.Size) -> bool:
        return len(shape) >= 2

    known = (hyper("eps", Eps, 1e-8), hyper("delta", Delta, 0.1), hyper("wd_ratio", WdRatio, 0.1))
    return Rule("project", update, scalars, hypers=known, applies=is_matrix, reads_memory=True)


@factory
def clip_norm(add_eps: bool = True) -> Rule:
    """Clip the gradient by its norm over all tensors: ``g <- g * min(1, max_grad_norm / (norm + eps))``.

    The gradient that later rules remember and compare with is the clipped one; ``p.grad`` is not touched.

    Args:
        add_eps: off leaves eps out (LAMB).
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"limit": h["max_grad_norm"], "eps": h.get("eps", 1e-8) if add_eps else 0.0}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        norm = c.total(x.u * x.u).sqrt()
        factor = (c.limit / (norm + c.eps)).clamp(max=1.0)
        c.note("clip_factor", factor)
        return x.but(u=x.u * factor, g=x.g * factor), {}

    known = (hyper("max_grad_norm", MaxGradNorm, 1.0), *((hyper("eps", Eps, 1e-8),) if add_eps else ()))
    return Rule("clip_norm", update, scalars, hypers=known)
