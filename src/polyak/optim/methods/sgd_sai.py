"""SGD-SaI: momentum with a rate for each tensor, found from its first gradient."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from polyak.declare import Eps, Lr, Momentum, Paper, Range, WeightDecay
from polyak.memory.averages import ema
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.weight import decay, descend

EQUAL = 1e-12
"""Share of the sum of squares under which the squares around the mean are rounding."""


@factory
def scaled_at_start(strict: bool = False) -> Rule:
    """SGD-SaI's direction: an average of the gradient times a constant for each tensor (arXiv:2412.11768).

    ``snr = |g| / (std(g) + eps)`` of the tensor's first gradient that is not 0 and finite, or of ``strict`` simply the
    first; ``sqrt(N)`` where its N entries are all equal, but for ``strict``. The average starts as the first gradient.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"rate": 1 - h["momentum"] if t > 1 else 1.0, "eps": h["eps"], "first": float(t == 1)}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        g = x.u.double()  # the difference of two sums: squares rounded to float32 would show in it
        total, squares = c.sum(g, g * g)
        around_mean = (squares - total * total / c.numel).clamp(min=0)
        found = squares.sqrt() / ((around_mean / (c.numel - 1).clamp(min=1)).sqrt() + c.eps)
        if not strict:
            found = torch.where((around_mean <= EQUAL * squares) & (squares > 0), c.numel.sqrt(), found)
        found = found.to(s.snr.dtype)
        due = c.first > 0 if strict else (s.snr == 0) & torch.isfinite(found)
        snr = torch.where(due, found, s.snr)
        c.note("snr", snr)
        m = ema(s.momentum_buffer, x.u, c.rate)
        return x.but(u=snr * m), {"momentum_buffer": m, "snr": snr}

    slots = (
        Slot("momentum_buffer", "average of the gradient", "signed"),
        Slot("snr", "signal-to-noise ratio of the first gradient, one number a tensor", shape="scalar"),
    )
    known = SGDSaI.reads("momentum", "eps")
    return Rule("scaled_at_start", update, scalars, slots, known, timed=True)


class SGDSaI(Method):
    """SGD with learning-rate scaling at initialization (arXiv:2412.11768).

    ::

        snr <- |g| / (std(g) + eps)   (of each tensor's first gradient, once)
        m <- g at first, then momentum * m + (1 - momentum) * g
        p <- p * (1 - lr * weight_decay) - lr * snr * m

    For gradients of zero mean snr is about the root of the number of entries, so the lr is far below SGD's.

    Differs from the authors' code: a tensor's first gradient is its own, whenever it comes; one that is 0 or not
    finite is not taken, so that it does not freeze the tensor for ever; where all entries are equal, as in a tensor of
    one element, snr is the root of their number, not ``|g| / eps``. ``strict=True`` is the authors' in the last two.
    """

    slug = "sgd_sai"
    family = "step size"
    paper = Paper("No More Adam: Learning Rate Scaling at Initialization is All You Need", 2024, "2412.11768")
    vectors = ["sgd-sai", "sgd-sai-degenerate"]

    lr: Annotated[Lr, Range(1e-4, 1e-1)] = 1e-2
    momentum: Momentum = 0.9
    eps: Annotated[Eps, "added to the deviation"] = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 1e-2
    strict: Annotated[bool, "take the first gradient as it is"] = False

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(decay("decoupled"), scaled_at_start(options["strict"]), descend())
