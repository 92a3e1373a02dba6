"""AdEMAMix: a fast and a very slow average of the gradient."""

from __future__ import annotations

import math
from typing import Annotated, Any

from torch import Tensor

from polyak.declare import NON_NEGATIVE, STATIC_IF_ZERO, Betas3, Choice, Eps, Lr, Paper, Range, WeightDecay
from polyak.memory.averages import debias, ema
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Flow, Places
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.weight import decay, descend

SLOW = Choice(((0.9, 0.999, 0.99), (0.9, 0.999, 0.999), (0.9, 0.999, 0.9999)))


def slow_beta(start: float, end: float, t: int, warmup: float | None) -> float:
    """AdEMAMix's ``beta3(t)``: the half-life grows linearly from that of ``start`` to that of ``end``.

    The 1e-8 is the authors': it makes ``start = 0`` legal and shifts values by about 1e-8.
    """
    if not warmup or t >= warmup:
        return end

    def life(b: float) -> float:
        return math.log(0.5) / math.log(b + 1e-8) - 1

    share = t / warmup
    return float(0.5 ** (1 / ((1 - share) * life(start) + share * life(end) + 1)))


@factory
def ademamix(fast: bool = True) -> Rule:
    """AdEMAMix's direction: a fast average and ``alpha`` times a slow one over Adam's root (arXiv:2409.03137).

    Args:
        fast: keep the fast average; off (``betas[0] = 0``) reads the gradient itself and saves a buffer.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        b1, b2, b3 = (float(b) for b in h["betas"])
        warmup = h["alpha_warmup"]
        alpha = h["alpha"] * t / warmup if warmup and t < warmup else h["alpha"]
        return {
            "rate1": 1 - b1, "rate2": 1 - b2, "rate3": 1 - slow_beta(b1, b3, t, h["beta3_warmup"]), "alpha": alpha,
            "step": 1 / debias(b1, t), "root": 1 / math.sqrt(debias(b2, t)), "eps": h["eps"],
        }  # fmt: skip

    def update(x: Flow, s: Any, c: Places) -> tuple[Flow, dict[str, Tensor]]:
        slow = ema(s.exp_avg_slow, x.u, c.rate3)
        v = ema(s.exp_avg_sq, x.u * x.u, c.rate2)
        new = {"exp_avg_slow": slow, "exp_avg_sq": v}
        m = x.u
        if fast:
            m = new["exp_avg"] = ema(s.exp_avg, x.u, c.rate1)
        mixed = c.place("exp_avg", c.step * m) + c.place("exp_avg_slow", c.alpha * slow)
        return x.but(u=mixed / (v.sqrt() * c.root + c.eps)), new

    slots: tuple[Slot, ...] = (Slot("exp_avg", "fast average of the gradient", "signed"),) if fast else ()
    slots += (
        Slot("exp_avg_slow", "slow average of the gradient", "signed"),
        Slot("exp_avg_sq", "average of its square", "positive"),
    )
    known = AdEMAMix.reads("betas", "alpha", "beta3_warmup", "alpha_warmup", "eps")
    places = ("exp_avg", "exp_avg_slow")
    return Rule("ademamix", update, scalars, slots, known, timed=True, places=places, traits=("scale_free",))


class AdEMAMix(Method):
    """AdEMAMix (Pagliardini et al., arXiv:2409.03137): better use of very old gradients.

    ::

        m1 <- b1 * m1 + (1 - b1) * g
        m2 <- b3(t) * m2 + (1 - b3(t)) * g
        v <- b2 * v + (1 - b2) * g^2
        p <- p * (1 - lr * weight_decay) - lr * (m1^ + alpha(t) * m2) / (sqrt(v^) + eps)

    ``m2`` is not bias corrected, on purpose. Over ``beta3_warmup`` steps its half-life grows linearly from that of b1
    to that of b3, over ``alpha_warmup`` alpha grows linearly from 0; both follow the saved step, counted from 1, and
    survive a resume. ``alpha`` also enlarges the step, by up to ``1 + alpha``: lower the lr. Runs shorter than
    ``1 / (1 - b3)`` steps hardly see ``m2``. The paper uses alpha 5 to 8, both warm-ups as long as the run and a
    weight decay of 0.1. ``b1 = 0`` saves a buffer.
    """

    slug = "ademamix"
    family = "adaptive"
    paper = Paper("The AdEMAMix Optimizer: Better, Faster, Older", 2024, "2409.03137")
    vectors = ["ademamix", "ademamix-warmup", "ademamix-beta1zero"]

    lr: Annotated[Lr, Range(1e-4, 1e-2)] = 1e-3
    betas: Annotated[Betas3, STATIC_IF_ZERO, SLOW] = (0.9, 0.999, 0.9999)
    alpha: Annotated[float, NON_NEGATIVE, Choice((2.0, 5.0, 8.0)), "weight of the slow average"] = 2.0
    beta3_warmup: Annotated[float | None, NON_NEGATIVE, "steps until betas[2] is in full; None or 0: at once"] = None
    alpha_warmup: Annotated[float | None, NON_NEGATIVE, "steps until alpha is in full; None or 0: at once"] = None
    eps: Eps = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(decay("decoupled"), ademamix(fast=options["betas"][0] != 0), descend())

    def check_options(self, group: Options) -> None:
        """A slow average that is faster than the fast one is a likely mistake."""
        if group["betas"][2] < group["betas"][0]:
            self.advise("betas[2] < betas[0]: the slow average is the faster one")
