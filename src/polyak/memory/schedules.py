r"""How the weight of the past changes over a run: ``beta`` as a pure function of the update count.

``t`` counts updates from 1, so the update that turns the start value :math:`e_0` into :math:`e_1` has ``t = 1``.
``beta`` is the weight of the past, :math:`e_t = \beta_t e_{t-1} + (1 - \beta_t)\,\theta_t`; ``beta = 0`` copies and
``beta = 1`` freezes. Everything here is float64 arithmetic on plain numbers; :mod:`polyak.memory.profiles` has
what is special to power-function averages (their width, and rebuilding one of another width afterwards).

===================  ==================================================  =======================================
schedule             first update                                        who
===================  ==================================================  =======================================
``constant_beta``    mixes (start from a copy) or copied by the caller   MoCo, BYOL, ALBEF; torch AveragedModel
``uniform_beta``     copies                                              Polyak-Ruppert, SWA
``warmup_beta``      copies                                              timm, diffusers (warm-up), ema-pytorch
``ramp_beta``        copies                                              diffusers (default)
``half_life_beta``   nearly copies if ramped up                          EDM
``power_beta``       copies                                              EDM2 (Karras)
``cosine_beta``      mixes                                               BYOL, DINO, lightly
===================  ==================================================  =======================================
"""

from __future__ import annotations

import math

from polyak.memory._check import require
from polyak.memory.profiles import gamma_of_sigma_rel, posthoc_weights, sigma_rel_of_gamma

__all__ = [
    "constant_beta",
    "cosine_beta",
    "gamma_of_sigma_rel",
    "half_life_beta",
    "posthoc_weights",
    "power_beta",
    "ramp_beta",
    "sigma_rel_of_gamma",
    "uniform_beta",
    "warmup_beta",
]


def constant_beta(t: int, beta: float) -> float:
    r"""The same weight at every update: :math:`\beta_t = \beta`.

    Args:
        t: update count, >= 1. Only checked, so that all schedules are called alike.
        beta: weight of the past, in [0, 1].

    Raises:
        ValueError: if an argument is out of range.
    """
    _require_count(t)
    require(0.0 <= beta <= 1.0, "beta", beta, "in [0, 1]")
    return beta


def uniform_beta(t: int) -> float:
    r"""Plain mean of the values seen, the start excluded: :math:`\beta_t = 1 - 1/t` (Polyak and Juditsky, 1992).

    Args:
        t: update count, >= 1.

    Raises:
        ValueError: if ``t`` is below 1.
    """
    _require_count(t)
    return 1.0 - 1.0 / t


def warmup_beta(
    t: int,
    decay: float = 0.9999,
    power: float = 2.0 / 3.0,
    inv_gamma: float = 1.0,
    update_after_step: int = 0,
    min_decay: float = 0.0,
) -> float:
    r"""Power-law warm-up of timm, diffusers (``use_ema_warmup``) and ema-pytorch.

    With :math:`s = t - \text{update\_after\_step} - 1`:
    :math:`\beta_t = \mathrm{clip}\big(1 - (1 + s/\gamma)^{-p},\ \text{min\_decay},\ \text{decay}\big)`,
    and 0 (a copy) while :math:`s \le 0`.

    Args:
        t: update count, >= 1.
        decay: the final weight, in [0, 1].
        power: exponent :math:`p` >= 0; 2/3 reaches 0.999 at 31.6 k updates, 3/4 at 10 k.
        inv_gamma: time scale :math:`\gamma` > 0 (diffusers and ema-pytorch call it ``inv_gamma``).
        update_after_step: number of further updates that only copy, >= 0.
        min_decay: lower bound once the warm-up has begun, in [0, decay].

    Raises:
        ValueError: if an argument is out of range.
    """
    require(power >= 0.0, "power", power, "at least 0")
    require(inv_gamma > 0.0, "inv_gamma", inv_gamma, "greater than 0")
    s = _updates_after(t, update_after_step)
    beta = 1.0 - (1.0 + max(s, 0) / inv_gamma) ** -power
    return _clip_after_start(s, beta, decay, min_decay)


def ramp_beta(t: int, decay: float = 0.9999, update_after_step: int = 0, min_decay: float = 0.0) -> float:
    r"""Ramp of TensorFlow's and diffusers' default EMA: :math:`\beta_t = \min\big((1+s)/(10+s),\ \text{decay}\big)`.

    :math:`s = t - \text{update\_after\_step} - 1`; 0 (a copy) while :math:`s \le 0`, never below ``min_decay`` after.

    Args:
        t: update count, >= 1.
        decay: the final weight, in [0, 1].
        update_after_step: number of further updates that only copy, >= 0.
        min_decay: lower bound once the ramp has begun, in [0, decay].

    Raises:
        ValueError: if an argument is out of range.
    """
    s = _updates_after(t, update_after_step)
    return _clip_after_start(s, (1.0 + s) / (10.0 + s) if s > 0 else 0.0, decay, min_decay)


def half_life_beta(t: float, half_life: float, delta: float = 1.0, rampup_ratio: float | None = 0.05) -> float:
    r"""Half-life with a ramp-up, as in EDM (arXiv:2206.00364): :math:`\beta_t = 2^{-\delta/h}`.

    :math:`h = \min(\text{half\_life},\ \text{rampup\_ratio}\cdot t)`, so early on the average spans a fixed share of
    the run so far.

    Args:
        t: progress *including* this update, > 0, in the unit of ``half_life`` (EDM counts images).
        half_life: > 0.
        delta: progress since the last update, > 0, in the same unit (EDM: the batch size).
        rampup_ratio: > 0, or ``None`` for no ramp-up. EDM uses 0.05, EDM2 0.09.

    Raises:
        ValueError: if an argument is out of range.
    """
    require(t > 0.0, "t", t, "greater than 0")
    require(half_life > 0.0, "half_life", half_life, "greater than 0")
    require(delta > 0.0, "delta", delta, "greater than 0")
    require(rampup_ratio is None or rampup_ratio > 0.0, "rampup_ratio", rampup_ratio, "greater than 0, or None")
    h = half_life if rampup_ratio is None else min(half_life, rampup_ratio * t)
    return float(0.5 ** (delta / max(h, 1e-8)))


def power_beta(t: float, gamma: float, delta: float = 1.0) -> float:
    r"""Power-function average of EDM2 (arXiv:2312.02696): :math:`\beta_t = (1 - \delta/t)^{\gamma+1}`.

    The weight of a value seen at time :math:`\tau` is proportional to :math:`\tau^\gamma`, so the profile has the same
    shape at any length of the run. ``gamma = 0`` is the plain mean.

    Args:
        t: progress *including* this update, > 0 (updates, or images as EDM2 counts).
        gamma: exponent, > -1; see :func:`gamma_of_sigma_rel`.
        delta: progress since the last update, > 0, in the unit of ``t``. An average that acts only on every ``u``-th
            step passes the step count and ``u``. ``delta >= t`` means nothing came before: a copy.

    Raises:
        ValueError: if an argument is out of range.
    """
    require(t > 0.0, "t", t, "greater than 0")
    require(gamma > -1.0, "gamma", gamma, "greater than -1")
    require(delta > 0.0, "delta", delta, "greater than 0")
    return float(max(0.0, 1.0 - delta / t) ** (gamma + 1.0))


def cosine_beta(k: int, n: int, start: float, end: float, closed: bool = False) -> float:
    r"""Half a cosine from ``start`` to ``end``: :math:`\beta_k = e + (s - e)\,(1 + \cos(\pi k/n))/2`.

    ``closed = False`` is DINO's (arXiv:2104.14294): over ``k = 0 .. n-1`` it never quite reaches ``end``.
    ``closed = True`` divides by ``n - 1`` as lightly does, so the last of the ``n`` values is ``end``. Past its end the
    schedule stays at ``end``.

    Args:
        k: index of the update *from 0* (``t - 1``), >= 0.
        n: number of updates, >= 1.
        start: value at ``k = 0``, in [0, 1] (where ``n`` leaves room for one: a closed schedule of one is ``end``).
        end: value approached, in [0, 1].
        closed: whether the ``n``-th value is exactly ``end``.

    Raises:
        ValueError: if an argument is out of range.
    """
    require(k >= 0, "k", k, "at least 0")
    require(n >= 1, "n", n, "at least 1")
    require(0.0 <= start <= 1.0, "start", start, "in [0, 1]")
    require(0.0 <= end <= 1.0, "end", end, "in [0, 1]")
    last = n - 1 if closed else n
    return end if k >= last else end + (start - end) * (1.0 + math.cos(math.pi * k / last)) / 2.0


def _require_count(t: int) -> None:
    require(t >= 1, "t", t, "at least 1")


def _updates_after(t: int, update_after_step: int) -> int:
    """Updates since the copying phase ended, ``s`` of the docstrings above."""
    _require_count(t)
    require(update_after_step >= 0, "update_after_step", update_after_step, "at least 0")
    return t - update_after_step - 1


def _clip_after_start(s: int, beta: float, decay: float, min_decay: float) -> float:
    require(0.0 <= decay <= 1.0, "decay", decay, "in [0, 1]")
    require(0.0 <= min_decay <= decay, "min_decay", min_decay, f"in [0, decay] = [0, {decay!r}]")
    return 0.0 if s <= 0 else max(min(beta, decay), min_decay)
