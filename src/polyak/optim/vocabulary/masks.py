"""Random masks: a share of the entries of each matrix takes part, drawn anew from time to time."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from polyak.declare import Interval, hyper
from polyak.memory.draws import uniform_at
from polyak.memory.noise import uniform, uniform_bits
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, factory
from polyak.optim.vocabulary.spikes import PERIOD

Density = Annotated[float, Interval(0.0, 1.0, low_open=True), "share of the entries of 2-d tensors that take part"]
Seed = Annotated[int, Interval(0, 2**63), "of what is drawn; the same on every rank"]
SEEDS = 2**24
"""Whole numbers up to which float32 has all."""
APART = 9973
"""Distance of the seeds of tensors that follow each other; a prime."""


def numbers(stack: Tensor) -> Tensor:
    """Numbers in [0, 1) for the entries of tensors that are filled with their seeds."""
    flat = stack.reshape(len(stack), -1)
    drawn = [uniform(uniform_bits(own, own[0].to(torch.int64))) for own in flat]
    return torch.stack(drawn).to(stack.dtype).reshape(stack.shape)


@factory
def random_mask() -> Rule:
    """Let through the gradient of a share ``density`` of the entries of each 2-d tensor (arXiv:2501.06842).

    Each entry is chosen with that chance, every ``DeltaT`` steps anew (never again for 0). The choice follows from
    ``seed``, the tensor's place among the parameters and its steps: it is no state, equal on all ranks, and after a
    resume what it was. Memories behind it stay dense, see :class:`polyak.optim.SPAM`. ``p.grad`` is not touched.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        period = t // h["DeltaT"] if h["DeltaT"] else 0
        return {"density": h["density"], "draw": float(int(uniform_at(h["seed"], period) * SEEDS))}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        seed = torch.remainder(c.draw + APART * c.salt, SEEDS)
        # a question about the whole tensor: a kernel may see a part of it, or hold it in another order
        kept = c.matrix(numbers, torch.zeros_like(x.u) + seed) < c.density
        c.note("density", kept.to(x.u.dtype))
        return x.but(u=torch.where(kept, x.u, 0.0), g=torch.where(kept, x.g, 0.0)), {}

    known = (hyper("density", Density, 0.5), PERIOD, hyper("seed", Seed, 0))
    return Rule("random_mask", update, scalars, hypers=known, timed=True, applies=lambda shape: len(shape) == 2)
