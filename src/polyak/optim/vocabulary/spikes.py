"""Rules about gradient spikes: entries that are cut, norms that are held, memories that are forgotten in time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import HALF_OPEN_UNIT, NON_NEGATIVE, Eps, hyper
from polyak.memory.averages import debias, ema
from polyak.optim.engine.context import Context, Flow, Memories
from polyak.optim.engine.rule import Options, Rule, Slot, factory

Threshold = Annotated[float, NON_NEGATIVE, "square of a spike, in averages of the square; 0: nothing is cut"]
AccuSteps = Annotated[int, NON_NEGATIVE, "steps from the start, and from each reset, in which nothing is cut"]
Period = Annotated[int, NON_NEGATIVE, "steps from reset to reset of the memories; 0: never"]
Warmup = Annotated[int, NON_NEGATIVE, "steps in which the step grows again after a reset"]
Gamma = Annotated[float, HALF_OPEN_UNIT, "retention of the average of norms"]
GammaSq = Annotated[float, HALF_OPEN_UNIT, "retention of the average of squared norms"]
GammaMax = Annotated[float, HALF_OPEN_UNIT, "retention of the average of the largest entry"]
PERIOD = hyper("DeltaT", Period, 500)
RESTARTED = 0.01
"""Share of a step that is made at a reset."""

ResetAt = Literal["now", "next"]


def since_reset(h: Options, t: int) -> int:
    """Steps since the last reset, or since the start; 0 at a reset."""
    return t % h["DeltaT"] if h["DeltaT"] else t


def cut(g: Tensor, square: Tensor, threshold: Any) -> Tensor:
    """Bring entries with ``g^2 > threshold * square`` to that size; an infinite one becomes finite."""
    most = threshold * square
    return torch.where(g * g > most, torch.sign(g) * most.sqrt(), g)


@factory
def clip_spikes() -> Rule:
    """Cut spikes of the gradient (SPAM, arXiv:2501.06842), with an average of the square of its own.

    ``g <- sign(g) * sqrt(threshold * s)`` where ``g^2 > threshold * s``; ``s`` averages the square of what is let
    through. In the first ``grad_accu_steps`` steps nothing is cut. Behind it any memory may follow. ``p.grad`` is not
    touched.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        clips = h["threshold"] > 0 and t >= h["grad_accu_steps"]
        return {"threshold": h["threshold"], "clips": float(clips), "rate": 1 - h["spike_beta"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        u = torch.where(c.clips > 0, cut(x.u, s.spike_sq, c.threshold), x.u)
        g = torch.where(c.clips > 0, cut(x.g, s.spike_sq, c.threshold), x.g)
        c.note("spikes", (u != x.u).to(u.dtype))
        return x.but(u=u, g=g), {"spike_sq": ema(s.spike_sq, u * u, c.rate)}

    beta = hyper("spike_beta", Annotated[float, HALF_OPEN_UNIT, "retention of the average of the square"], 0.999)
    known = (hyper("threshold", Threshold, 5000.0), hyper("grad_accu_steps", AccuSteps, 20), beta)
    slots = (Slot("spike_sq", "average of the square of what is let through", "positive"),)
    return Rule("clip_spikes", update, scalars, slots, known, timed=True)


@factory
def rewarm() -> Rule:
    """Make small steps after each reset: ``u <- s * u``, s rising along a half cosine in ``warmup_steps`` steps.

    The start of training is no reset.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        passed, steps = since_reset(h, t), h["warmup_steps"]
        if not h["DeltaT"] or t < h["DeltaT"] or passed >= steps:
            return {"warmth": 1.0}
        return {"warmth": 1 - (1 - RESTARTED) * (1 + math.cos(math.pi * passed / (steps + 1))) / 2}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(u=c.warmth * x.u), {}

    return Rule("rewarm", update, scalars, hypers=(PERIOD, hyper("warmup_steps", Warmup, 150)), timed=True)


@factory
def momentum_reset(rule: Rule, at: ResetAt = "now", restart: bool = False, spared: tuple[str, ...] = ()) -> Rule:
    """Any rule with memories, which it forgets every ``DeltaT`` steps (arXiv:2501.06842).

    Args:
        rule: the rule, of which all else stays.
        at: when memories are as at the start: ``"now"``, in the step of the reset, or ``"next"``, after it.
        restart: the rule's count of steps begins anew too, with 1 at the reset; else its bias corrections go on.
        spared: names of memories that are kept.

    Raises:
        ValueError: the rule keeps no memory, or none of a name that is spared, or one that starts at more than a
            number and is not spared.
    """
    reset = [slot for slot in rule.slots if slot.name not in spared]
    if drawn := [slot.name for slot in reset if callable(slot.initial)]:
        raise ValueError(f"momentum_reset: {rule.name} starts {drawn} at tensors, not numbers; they must be spared")
    forgotten = {slot.name: slot.initial for slot in reset if not callable(slot.initial)}
    unknown = set(spared) - {slot.name for slot in rule.slots}
    if not forgotten or unknown:
        kept = [slot.name for slot in rule.slots]
        raise ValueError(f"momentum_reset: {rule.name} keeps {kept}, and spared are {list(spared)}: nothing to reset")

    def scalars(h: Options, t: int) -> dict[str, Any]:
        counts_anew = restart and h["DeltaT"] and t >= h["DeltaT"]
        own = rule.scalars(h, since_reset(h, t) + 1 if counts_anew else t)
        return {**own, "forgets": float(bool(h["DeltaT"]) and since_reset(h, t) == 0)}

    def update(x: Flow, s: Any, c: Any) -> tuple[Flow, dict[str, Tensor]]:
        def forget(memories: dict[str, Tensor]) -> dict[str, Tensor]:
            fresh = {n: torch.where(c.forgets > 0, forgotten[n], m) for n, m in memories.items() if n in forgotten}
            return {**memories, **fresh}

        old = {slot.name: getattr(s, slot.name) for slot in rule.slots}
        before = forget(old) if at == "now" else old
        x, new = rule.update(x, Memories(before), c)
        return x, {**before, **new} if at == "now" else forget({**old, **new})

    known = tuple(h for h in rule.hypers if h.name != PERIOD.name)
    return replace(
        rule, name=f"momentum_reset({rule.name})", update=update, scalars=scalars, hypers=(*known, PERIOD), timed=True,
        origin=None,
    )  # fmt: skip


def _count(h: Options, t: int, restarts: bool) -> int:
    """The step that an average's bias correction is for.

    With ``restarts`` it is counted from the last reset before this step, whose own count was 1.
    """
    if not restarts or not h["DeltaT"] or t <= h["DeltaT"]:
        return t
    return since_reset(h, t - 1) + 2


@factory
def ada_clip(restarts: bool = False) -> Rule:
    """Cut what is larger than the largest entries were on average (Stable-SPAM, arXiv:2502.17055).

    ``M <- gamma3 * M + (1 - gamma3) * max|g|``, bias corrected to ``M^``; ``g <- g / max|g| * M^`` where ``|g| > M^``:
    the largest entry becomes ``M^``. One number a tensor is kept.

    Args:
        restarts: the bias correction counts from each reset, as the authors' does, though ``M`` is kept.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"rate": 1 - h["gamma3"], "whole": 1 / debias(h["gamma3"], _count(h, t, restarts))}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        top = c.largest(x.u.abs())
        average = ema(s.spike_max, top.to(s.spike_max.dtype), c.rate)
        limit = average * c.whole
        factor = limit / torch.where(top == 0, 1.0, top)
        u = torch.where(x.u.abs() > limit, x.u * factor.to(x.u.dtype), x.u)
        c.note("spikes", (u != x.u).to(u.dtype))
        return x.but(u=u), {"spike_max": average}

    known = (hyper("gamma3", GammaMax, 0.999), *((PERIOD,) if restarts else ()))
    slots = (Slot("spike_max", "average of the largest entry, one number a tensor", shape="scalar"),)
    return Rule("ada_clip", update, scalars, slots, known, timed=True)


@factory
def norm_control(restarts: bool = False) -> Rule:
    """Bring a tensor's gradient to about norm 1 (AdaGN of Stable-SPAM, arXiv:2502.17055).

    ``g <- g / |g| * a^ / (sqrt(b^) + eps)``, with averages ``a`` of ``|g|`` (``gamma1``) and ``b`` of ``|g|^2``
    (``gamma2``), bias corrected. Two numbers a tensor are kept.

    Args:
        restarts: the bias corrections count from each reset, as the authors' do, though the averages are kept.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        count = _count(h, t, restarts)
        wholes = {"whole1": 1 / debias(h["gamma1"], count), "whole2": 1 / debias(h["gamma2"], count)}
        return {"rate1": 1 - h["gamma1"], "rate2": 1 - h["gamma2"], **wholes, "eps": h["eps"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        square = c.sum(x.u * x.u)
        norm = square.sqrt()
        mean = ema(s.norm_avg, norm.to(s.norm_avg.dtype), c.rate1)
        spread = ema(s.norm_sq_avg, square.to(s.norm_sq_avg.dtype), c.rate2)
        held = mean * c.whole1 / ((spread * c.whole2).sqrt() + c.eps)
        factor = held / torch.where(norm == 0, 1.0, norm)
        c.note("norm", held)
        return x.but(u=x.u * factor.to(x.u.dtype)), {"norm_avg": mean, "norm_sq_avg": spread}

    known = (hyper("gamma1", Gamma, 0.7), hyper("gamma2", GammaSq, 0.9), hyper("eps", Eps, 1e-8))
    slots = (
        Slot("norm_avg", "average of the norm, one number a tensor", shape="scalar"),
        Slot("norm_sq_avg", "average of the squared norm, one number a tensor", shape="scalar"),
    )
    return Rule("norm_control", update, scalars, slots, (*known, *((PERIOD,) if restarts else ())), timed=True)
