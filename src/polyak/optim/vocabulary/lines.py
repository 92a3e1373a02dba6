"""Directions of matrices brought to one size in every line: a row, or a column."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import Eps, hyper
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, factory

Lines = Literal["rows", "columns"]
NormEps = Annotated[Eps, "least root mean square of a line that is divided by"]


def sums_of_rows(squares: Tensor, c: Context) -> Tensor:
    """The sum over each row of (shape[0], rest) of what is nowhere negative."""
    r = c.rows(squares)
    # Where the largest is 0 all are. That it is asked for keeps the sums out of the loop that writes memories: Inductor
    # (torch 2.13) would put both into one, and fail.
    return torch.where(r.worst == 0, 0.0, r.row[0])


@factory
def level(lines: Lines = "rows") -> Rule:
    """Divide every row of the direction by its root mean square, at least ``norm_eps``; or every column.

    Rows and columns are those of (shape[0], rest): a row is what one output sums up.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"norm_eps": h["norm_eps"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        squares = x.u * x.u
        # a tensor: what is made of a plain number would be compiled for that number alone
        columns = x.u.new_full((), x.u.shape[-1], dtype=torch.float64)
        if lines == "rows":
            mean = sums_of_rows(squares, c) / columns
        else:
            mean = c.columns(squares)[0] / (c.numel / columns)
        return x.but(u=x.u / mean.sqrt().clamp(min=c.norm_eps)), {}

    known = (hyper("norm_eps", NormEps, 1e-8),)
    why = f"signs have a root mean square of 1 in all {lines} already"
    return Rule(
        f"level_{lines}", update, scalars, hypers=known, traits=("scale_free",), pointless_behind=(("signs", why),)
    )
