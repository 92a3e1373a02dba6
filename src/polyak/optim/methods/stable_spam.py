"""Stable-SPAM: Adam behind two adaptive clippings, which forgets its memories in time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any

from polyak.declare import UNIT, Betas, Choice, Described, Eps, Interval, Lr, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options, Rule, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.adaptive import Amsgrad, adam
from polyak.optim.vocabulary.spikes import (
    GammaMax,
    GammaSq,
    Period,
    ResetAt,
    ada_clip,
    momentum_reset,
    norm_control,
)
from polyak.optim.vocabulary.weight import decay, descend


def _is_gamma(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and (value == -1 or 0 <= value < 1)


OF_BETA = Described("in [0, 1), or -1 for betas[0]", _is_gamma)


def cooling(h: Options, t: int) -> float:
    """The factor on ``betas[0]`` and ``gamma1``: a half cosine from 1 to ``eta_min``, where it stays."""
    if h["total_T"] is None:
        return 1.0
    along = min(t, h["total_T"]) / (h["total_T"] + 1)
    share: float = h["eta_min"] + (1 - h["eta_min"]) * (1 + math.cos(math.pi * along)) / 2
    return share


@factory
def cooled(rule: Rule) -> Rule:
    """A rule whose ``betas[0]`` and ``gamma1`` shrink along a half cosine over ``total_T`` steps (arXiv:2502.17055)."""

    def scalars(h: Options, t: int) -> dict[str, Any]:
        (b1, b2), factor = h["betas"], cooling(h, t)
        gamma1 = b1 if h["gamma1"] == -1 else h["gamma1"]
        return rule.scalars({**h, "betas": (b1 * factor, b2), "gamma1": gamma1 * factor}, t)

    own = StableSPAM.reads("betas", "gamma1", "total_T", "eta_min")
    kept = tuple(h for h in rule.hypers if h.name not in {o.name for o in own})
    name = f"cooled({rule.name})"
    return replace(rule, name=name, scalars=scalars, hypers=(*kept, *own), timed=True, origin=None)


class StableSPAM(Method):
    """Stable-SPAM (arXiv:2502.17055): Adam of a gradient with clipped entries and a norm of about 1 in every tensor.

    ::

        M <- gamma3 * M + (1 - gamma3) * max|g|;  g <- g / max|g| * M^ where |g| > M^
        a <- gamma1 * a + (1 - gamma1) * |g|;  b <- gamma2 * b + (1 - gamma2) * |g|^2
        g <- g / |g| * a^ / (sqrt(b^) + eps)
        m, v <- 0 if t is a multiple of DeltaT
        p <- p * (1 - lr * weight_decay) - lr * Adam(g)

    A hat is a bias correction. As in the authors' code it counts from the last reset, also that of M, a and b, which
    are kept. With ``total_T`` steps given, ``betas[0]`` and ``gamma1`` fall along a half cosine to ``eta_min`` times
    themselves. The authors train language models in 16 bits with ``gamma1=0.85, gamma2=0.99999``, in 4 bits with
    the defaults and ``DeltaT=500``. A gradient that is not finite spoils M for ever: ``check_finite=True`` refuses it.

    Differs from the authors' code: in the step of a reset that code still steps with the old m and v, corrected as if
    they were one step old, and forgets afterwards; so does ``reset_at="next"``, the default, while ``"now"`` forgets
    first, which the paper means. The cosine stays at its end after ``total_T``; steps are counted by tensor.
    """

    slug = "stable_spam"
    family = "robust and lean"
    paper = Paper("Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam", 2025, "2502.17055")
    vectors = ["stable-spam", "stable-spam-amsgrad"]

    lr: Annotated[Lr, Range(1e-4, 3e-2)] = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Annotated[Eps, "added to Adam's root and to the root of the average squared norm"] = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0
    amsgrad: Amsgrad = False
    gamma1: Annotated[float, OF_BETA, Choice((0.7, 0.85)), "retention of the average of norms; -1: betas[0]"] = 0.7
    gamma2: GammaSq = 0.9
    gamma3: GammaMax = 0.999
    total_T: Annotated[int | None, Interval(1), "steps over which betas[0] and gamma1 fall; None: they stay"] = None
    eta_min: Annotated[float, UNIT, "what they fall to, as a share"] = 0.5
    DeltaT: Annotated[Period, Choice((500, 1000))] = 1000
    reset_at: Annotated[ResetAt, "forget m and v after the step of a reset, or before it"] = "next"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        moments = adam(amsgrad=options["amsgrad"])
        spared = ("max_exp_avg_sq",) if options["amsgrad"] else ()
        direction = momentum_reset(moments, options["reset_at"], True, spared)
        clips = (ada_clip(restarts=True), cooled(norm_control(restarts=True)))
        return chain(decay("decoupled"), *clips, cooled(direction), descend())
