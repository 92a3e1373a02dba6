"""Adaptive momenta: one or more averages of the gradient over the root of an average of its square."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from polyak.declare import NON_NEGATIVE, Hyper
from polyak.memory.averages import debias, ema
from polyak.optim.engine.context import Context, Flow, Places
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.vocabulary import hypers
from polyak.optim.vocabulary.balls import DECAY_RATE, torque

EpsForm = Literal["after", "before"]


def corrections(beta1: Any, beta2: Any, t: int, eps_form: EpsForm, correct: bool = True) -> dict[str, Any]:
    """Adam's bias corrections: ``u = step * m / (sqrt(v) * root + eps)``.

    ``"after"`` adds eps to the corrected root (torch); ``"before"`` to the raw one (Hugging Face), which makes eps
    smaller by ``sqrt(1 - beta2 ** t)``.
    """
    if not correct:
        return {"step": 1.0, "root": 1.0}
    c1, c2 = debias(float(beta1), t), debias(float(beta2), t)
    if eps_form == "after":
        return {"step": 1 / c1, "root": 1 / math.sqrt(c2)}
    return {"step": math.sqrt(c2) / c1, "root": 1.0}


@factory
def adam(amsgrad: bool = False, eps_form: EpsForm = "after", correct_bias: bool = True, nesterov: bool = False) -> Rule:
    """Adam's direction: ``m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)`` (arXiv:1412.6980).

    Args:
        amsgrad: divide by the largest ``v`` so far (arXiv:1904.09237).
        eps_form: where eps is added, see :func:`corrections`.
        correct_bias: off leaves both corrections out.
        nesterov: read out ``b1 * m + (1 - b1) * u`` instead of ``m`` (AdamP).
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        b1, b2 = h["betas"]
        fixed = corrections(b1, b2, t, eps_form, correct_bias)
        return {"beta1": b1, "rate1": 1 - b1, "rate2": 1 - b2, "eps": h["eps"], **fixed}

    def update(x: Flow, s: Any, c: Places) -> tuple[Flow, dict[str, Tensor]]:
        m = ema(s.exp_avg, x.u, c.rate1)
        v = ema(s.exp_avg_sq, x.u * x.u, c.rate2)
        new = {"exp_avg": m, "exp_avg_sq": v}
        if amsgrad:
            v = new["max_exp_avg_sq"] = torch.maximum(s.max_exp_avg_sq, v)
        ahead = c.beta1 * m + c.rate1 * x.u if nesterov else m
        ahead = c.place("exp_avg", ahead)
        return x.but(u=c.step * ahead / (v.sqrt() * c.root + c.eps)), new

    slots: tuple[Slot, ...] = (Slot("exp_avg"), Slot("exp_avg_sq"))
    slots += (Slot("max_exp_avg_sq"),) if amsgrad else ()
    declared = (hypers.betas(0.9, 0.999), hypers.eps(1e-8))
    return Rule("adam", update, scalars, slots, declared, timed=True, places=("exp_avg",))


@factory
def adan() -> Rule:
    """Adan's direction: averages of the gradient, of its difference and of the squared look-ahead (arXiv:2208.06677).

    ``d = g - g_prev; m <- ema(g); v <- ema(d); n <- ema((g + b2 * d)^2); u = (m^ + b2 * v^) / (sqrt(n^) + eps)``
    where ``^`` is bias correction and ``d = 0`` at the first step.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        b1, b2, b3 = (float(b) for b in h["betas"])
        return {
            "rate1": 1 - b1, "rate2": 1 - b2, "rate3": 1 - b3, "ahead": b2, "eps": h["eps"],
            "seen": float(t > 1), "of_m": 1 / debias(b1, t), "of_v": b2 / debias(b2, t),
            "root": 1 / math.sqrt(debias(b3, t)),
        }  # fmt: skip

    def update(x: Flow, s: Any, c: Places) -> tuple[Flow, dict[str, Tensor]]:
        g = x.u
        d = c.seen * (g - s.previous_grad)
        m = ema(s.exp_avg, g, c.rate1)
        v = ema(s.exp_avg_diff, d, c.rate2)
        n = ema(s.exp_avg_sq, (g + c.ahead * d).square(), c.rate3)
        root = n.sqrt() * c.root + c.eps
        u = c.place("exp_avg", c.of_m * m / root) + c.place("exp_avg_diff", c.of_v * v / root)
        return x.but(u=u), {"exp_avg": m, "exp_avg_diff": v, "exp_avg_sq": n, "previous_grad": g}

    slots: tuple[Slot, ...] = (Slot("exp_avg"), Slot("exp_avg_diff"), Slot("exp_avg_sq"), Slot("previous_grad"))
    declared = (hypers.betas(0.98, 0.92, 0.99), hypers.eps(1e-8))
    return Rule("adan", update, scalars, slots, declared, timed=True, places=("exp_avg", "exp_avg_diff"))


def rectification(beta2: float, t: int) -> float | None:
    """RAdam's variance rectification times ``sqrt(1 - b2^t)`` (arXiv:1908.03265); None while it is undefined."""
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / debias(beta2, t)
    if rho < 5 or rho_inf <= 4:
        return None
    ratio = (rho - 4) / (rho_inf - 4) * (rho - 2) / rho * rho_inf / (rho_inf - 2)
    return math.sqrt(debias(beta2, t) * ratio)


@factory
def adabelief(
    rectify: bool = True, amsgrad: bool = False, degenerated_to_sgd: bool = True, accumulate_eps: bool = True
) -> Rule:
    """AdaBelief's direction: ``m / sqrt(s)``, ``s`` an average of ``(g - m)^2`` (arXiv:2010.07468).

    Args:
        rectify: RAdam's rule; while it is undefined the direction is ``m`` (``degenerated_to_sgd``) or 0.
        amsgrad: divide by the largest ``s`` so far; without effect under ``rectify``, as in the authors' code.
        accumulate_eps: eps stays in ``s`` at every step, as in paper and code; off adds it only to the root.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        b1, b2 = (float(b) for b in h["betas"])
        c1 = debias(b1, t)
        values = {"rate1": 1 - b1, "rate2": 1 - b2, "eps": h["eps"]}
        if not rectify:
            return values | {"adaptive": 1 / c1, "plain": 0.0, "root": 1 / math.sqrt(debias(b2, t))}
        r = rectification(b2, t)
        plain = 1 / c1 if r is None and degenerated_to_sgd else 0.0
        return values | {"adaptive": 0.0 if r is None else r / c1, "plain": plain, "root": 1.0}

    def update(x: Flow, s: Any, c: Places) -> tuple[Flow, dict[str, Tensor]]:
        m = ema(s.exp_avg, x.u, c.rate1)
        var = ema(s.exp_avg_var, (x.u - m).square(), c.rate2)
        if accumulate_eps:
            var = var + c.eps
        new = {"exp_avg": m, "exp_avg_var": var}
        if amsgrad:
            new["max_exp_avg_var"] = torch.maximum(s.max_exp_avg_var, var)
        belief = new["max_exp_avg_var"] if amsgrad and not rectify else var
        u = c.adaptive * m / (belief.sqrt() * c.root + c.eps)
        u = torch.where(c.adaptive > 0, u, c.plain * m) if rectify else u
        return x.but(u=c.place("exp_avg", u)), new

    slots: tuple[Slot, ...] = (Slot("exp_avg"), Slot("exp_avg_var"))
    slots += (Slot("max_exp_avg_var"),) if amsgrad else ()
    declared = (hypers.betas(0.9, 0.999), hypers.eps(1e-16))
    return Rule("adabelief", update, scalars, slots, declared, timed=True, places=("exp_avg",))


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

    slots: tuple[Slot, ...] = (Slot("exp_avg"),) if fast else ()
    slots += (Slot("exp_avg_slow"), Slot("exp_avg_sq"))
    steps = "steps over which it grows to its full value; None or 0: at once"
    declared = (
        hypers.betas(0.9, 0.999, 0.9999),
        Hyper("alpha", 2.0, NON_NEGATIVE, "weight of the slow average"),
        Hyper("beta3_warmup", None, NON_NEGATIVE, f"betas[2]: {steps}", optional=True),
        Hyper("alpha_warmup", None, NON_NEGATIVE, f"alpha: {steps}", optional=True),
        hypers.eps(1e-8),
    )
    return Rule("ademamix", update, scalars, slots, declared, timed=True, places=("exp_avg", "exp_avg_slow"))


@factory
def adatam(dampen: bool = False, bias_correction: bool = False, everywhere: bool = False) -> Rule:
    """AdaTAM's direction: torque-aware momentum over Adam's root, which sees the undamped gradient (arXiv:2412.18790).

    Args:
        dampen: weigh the gradient by ``1 - b1`` as Adam does.
        bias_correction: Adam's corrections.
        everywhere: one cosine over all tensors instead of one a tensor.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        b1, b2 = h["betas"]
        gain = 1 - b1 if dampen else 1.0
        fixed = corrections(b1, b2, t, "after", bias_correction)
        rate = 1 - h["decay_rate"]
        half, offset = 0.5 * gain, (0.5 + h["eps"]) * gain
        return {"beta1": b1, "rate2": 1 - b2, "rate": rate, "half": half, "offset": offset, "eps": h["eps"], **fixed}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        cosine = torque(s.exp_avg, x.u, s.cosine_avg, c.rate, c, everywhere)
        damping = c.offset + c.half * cosine
        c.note("cosine", cosine)
        c.note("damping", damping)
        m = c.beta1 * s.exp_avg + damping * x.u
        v = ema(s.exp_avg_sq, x.u * x.u, c.rate2)
        u = c.step * m / (v.sqrt() * c.root + c.eps)
        return x.but(u=u), {"exp_avg": m, "exp_avg_sq": v, "cosine_avg": cosine}

    slots: tuple[Slot, ...] = (Slot("exp_avg"), Slot("exp_avg_sq"), Slot("cosine_avg", shape="scalar"))
    declared = (hypers.betas(0.9, 0.999), DECAY_RATE, hypers.eps(1e-8))
    return Rule("adatam", update, scalars, slots, declared, timed=bias_correction)


__all__ = ["adabelief", "adam", "adan", "adatam", "ademamix", "corrections", "rectification", "slow_beta"]
