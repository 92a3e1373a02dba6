"""SPAM: Adam that cuts gradient spikes and forgets its memories in time."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from polyak.declare import STATIC, Betas, Choice, Eps, Interval, Lr, Paper, Range, WeightDecay
from polyak.memory.averages import ema
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.adaptive import CorrectBias, corrections
from polyak.optim.vocabulary.masks import Density, Seed, random_mask
from polyak.optim.vocabulary.spikes import (
    AccuSteps,
    Threshold,
    Warmup,
    cut,
    momentum_reset,
    rewarm,
    since_reset,
)
from polyak.optim.vocabulary.weight import decay, descend

RARE = Interval(1, float("inf"), high_open=True)


@factory
def spike_aware_adam(correct_bias: bool = True) -> Rule:
    """Adam's direction of a gradient whose spikes are cut by Adam's own second moment (arXiv:2501.06842).

    ``g <- sign(g) * sqrt(threshold * v)`` where ``g^2 > threshold * v``, with ``v`` as it was before the step; not in
    the first ``grad_accu_steps`` steps, nor in as many after a reset. eps is added before the bias correction.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        b1, b2 = h["betas"]
        clips = h["threshold"] > 0 and min(t, since_reset(h, t)) >= h["grad_accu_steps"]
        fixed = corrections(b1, b2, t, "before", correct_bias)
        return {
            "rate1": 1 - b1, "rate2": 1 - b2, "eps": h["eps"], "threshold": h["threshold"], "clips": float(clips),
            **fixed,
        }  # fmt: skip

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        g = torch.where(c.clips > 0, cut(x.u, s.exp_avg_sq, c.threshold), x.u)
        c.note("spikes", (g != x.u).to(g.dtype))
        m = ema(s.exp_avg, g, c.rate1)
        v = ema(s.exp_avg_sq, g * g, c.rate2)
        return x.but(u=c.step * m / (v.sqrt() * c.root + c.eps)), {"exp_avg": m, "exp_avg_sq": v}

    slots = (
        Slot("exp_avg", "average of the gradient, spikes cut", "signed"),
        Slot("exp_avg_sq", "average of its square", "positive"),
    )
    known = SPAM.reads("betas", "eps", "threshold", "grad_accu_steps", "DeltaT")
    return Rule("spike_aware_adam", update, scalars, slots, known, timed=True)


class SPAM(Method):
    """Spike-aware Adam with momentum reset (arXiv:2501.06842).

    ::

        m, v <- 0 if t is a multiple of DeltaT
        g <- sign(g) * sqrt(threshold * v) where g^2 > threshold * v
        m <- b1 * m + (1 - b1) * g;  v <- b2 * v + (1 - b2) * g^2
        p <- p - lr * s * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)
        p <- p * (1 - lr * weight_decay)

    Nothing is cut in ``grad_accu_steps`` steps from the start and from each reset, as in the authors' code. After a
    reset s rises from 0.01 to 1 in ``warmup_steps`` steps. Bias corrections are not reset. With ``density`` below 1 a
    random share of the entries of each 2-d tensor is trained, another one after each reset. An infinite gradient is
    cut to a finite one, NaN is not: ``check_finite=True`` refuses both.

    Differs from the authors' code: steps are counted by tensor; ``p.grad`` is left alone; masks are made from ``seed``
    and the step, and the first one has ``density`` of the entries on average, not exactly; m and v of masked tensors
    are dense, and 0 where nothing is trained, so that a density saves no memory here; weight decay reaches them too.
    """

    slug = "spam"
    family = "robust and lean"
    paper = Paper("SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training", 2025, "2501.06842")
    vectors = ["spam", "spam-density"]

    lr: Annotated[Lr, Range(1e-4, 3e-2)] = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Annotated[Eps, "added before the bias correction"] = 1e-6
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1), "decoupled, after the step"] = 0.0
    bias_correction: CorrectBias = True
    warmup_steps: Warmup = 150
    threshold: Annotated[Threshold, Choice((1000.0, 5000.0, 20000.0))] = 5000.0
    DeltaT: Annotated[int, RARE, "steps from reset to reset of the memories"] = 500
    grad_accu_steps: AccuSteps = 20
    density: Annotated[Density, STATIC] = 1.0
    seed: Seed = 0

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        mask = (random_mask(),) if options["density"] < 1 else ()
        direction = momentum_reset(spike_aware_adam(options["bias_correction"]))
        return chain(*mask, direction, rewarm(), descend(), decay("decoupled"))

    def check_options(self, group: Options) -> None:
        """Say it where nothing would ever be cut."""
        if group["threshold"] and group["grad_accu_steps"] >= group["DeltaT"]:
            self.advise("grad_accu_steps >= DeltaT, so that no spike is ever cut")
