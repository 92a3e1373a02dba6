r"""Profiles of power-function averages, and post-hoc averages of another width (EDM2, arXiv:2312.02696).

A power-function average weighs the value seen at time :math:`\tau` by :math:`\tau^\gamma`. Its width relative to the
length of the run, ``sigma_rel``, is what one chooses. Two or more such averages stored along one run span a space in
which an average of any other width, or as of any earlier time, can be rebuilt afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from polyak.memory._check import require

WIDEST_SIGMA_REL = 12.0**-0.5
"""Relative width of the plain mean, the widest power-function average with ``gamma >= 0``."""

Numbers = Sequence[float] | Tensor
"""A row of numbers: a sequence of floats or a 1-d tensor."""


def sigma_rel_of_gamma(gamma: float) -> float:
    r"""Relative width of a power-function average: :math:`\sigma = \sqrt{(\gamma+1)/(\gamma+3)}\,/\,(\gamma+2)`.

    It is the standard deviation of the profile in units of the length of the run.

    Args:
        gamma: exponent, > -1. 0 is the plain mean, of width 0.2887.

    Raises:
        ValueError: if ``gamma`` is not above -1.
    """
    require(gamma > -1.0, "gamma", gamma, "greater than -1")
    return math.sqrt((gamma + 1.0) / (gamma + 3.0)) / (gamma + 2.0)


def gamma_of_sigma_rel(sigma_rel: float) -> float:
    r"""Exponent of the power-function average of a given relative width; inverse of :func:`sigma_rel_of_gamma`.

    The largest root of :math:`\gamma^3 + 7\gamma^2 + (16 - \sigma^{-2})\gamma + 12 - \sigma^{-2} = 0` (EDM2,
    arXiv:2312.02696), by Newton's method from above, where the cubic is convex and the iteration monotone.

    Args:
        sigma_rel: in (0, 12**-0.5], that is up to 0.2887, the plain mean (``gamma = 0``).

    Raises:
        ValueError: if ``sigma_rel`` is out of range.
    """
    within = 0.0 < sigma_rel <= WIDEST_SIGMA_REL * (1.0 + 1e-12)  # what comes from gamma = 0 may be rounded up
    require(within, "sigma_rel", sigma_rel, f"in (0, {WIDEST_SIGMA_REL!r}]")
    q = sigma_rel**-2.0
    upper, gamma = math.inf, 1.0 / sigma_rel
    while gamma < upper:
        upper = gamma
        value = ((gamma + 7.0) * gamma + (16.0 - q)) * gamma + (12.0 - q)
        gamma -= value / ((3.0 * gamma + 14.0) * gamma + (16.0 - q))
    return max(upper, 0.0)


def posthoc_weights(
    t: Numbers,
    sigma_rel: Numbers,
    t_out: float | Numbers,
    sigma_rel_out: float | Numbers,
    normalise: bool = True,
) -> Tensor:
    r"""Weights that combine stored power-function averages into one of another width (EDM2, alg. 3).

    The least-squares fit of the wanted profile by the stored ones: :math:`A x = b` with
    :math:`A_{ij} = \langle p_i, p_j\rangle` and :math:`b_i = \langle p_i, p_r\rangle`, where

    .. math:: \langle p_a, p_b\rangle = \frac{(\gamma_a+1)(\gamma_b+1)}{(\gamma_a+\gamma_b+1)\max(t_a,t_b)}
        \begin{cases}(t_a/t_b)^{\gamma_b} & t_a < t_b\\ (t_b/t_a)^{\gamma_a} & \text{else.}\end{cases}

    The average sought is :math:`\sum_i x_i e_i`; accumulate it in float32 at least, the weights alternate in sign.

    Args:
        t: times at which the averages were stored, > 0; n of them.
        sigma_rel: their relative widths, in (0, 0.2887]; n of them. No pair ``(t, sigma_rel)`` may occur twice.
        t_out: time, or times, of the average sought, in (0, max(t)].
        sigma_rel_out: its relative width, or widths, in (0, 0.2887].
        normalise: divide each column of weights by its sum, as EDM2 does. ``False`` is ema-pytorch's.

    Returns:
        float64 tensor on the CPU: ``(n,)`` when ``t_out`` and ``sigma_rel_out`` are numbers, else ``(n, n_out)``.

    Raises:
        ValueError: on lengths that differ, times or widths out of range, or a snapshot that occurs twice.
    """
    stored = _profiles(t, sigma_rel, "t", "sigma_rel")
    wanted = _profiles(t_out, sigma_rel_out, "t_out", "sigma_rel_out")
    pairs = stored.T.tolist()
    require(len({tuple(pair) for pair in pairs}) == len(pairs), "(t, sigma_rel)", pairs, "free of repetitions")
    latest = stored[0].max().item()
    require(wanted[0].max().item() <= latest, "t_out", wanted[0].tolist(), f"at most max(t) = {latest!r}")
    a = _inner_products(*stored[:, :, None], *stored[:, None, :])
    b = _inner_products(*stored[:, :, None], *wanted[:, None, :])
    x: Tensor = torch.linalg.solve(a, b)
    x = x / x.sum(dim=0) if normalise else x
    scalar = all(not isinstance(v, Sequence) and torch.as_tensor(v).ndim == 0 for v in (t_out, sigma_rel_out))
    return x[:, 0] if scalar else x


def _profiles(t: float | Numbers, sigma_rel: float | Numbers, t_name: str, sigma_name: str) -> Tensor:
    """Stack times and exponents into a float64 tensor ``(2, n)``."""
    times = torch.as_tensor(t, dtype=torch.float64, device="cpu").reshape(-1)
    widths = torch.as_tensor(sigma_rel, dtype=torch.float64, device="cpu").reshape(-1)
    require(times.numel() >= 1, t_name, times.tolist(), "at least one time")
    require(times.shape == widths.shape, sigma_name, widths.tolist(), f"as many as {t_name}, {times.numel()}")
    require(bool((times > 0.0).all()), t_name, times.tolist(), "greater than 0")
    gammas = [gamma_of_sigma_rel(width) for width in widths.tolist()]
    return torch.stack([times, torch.tensor(gammas, dtype=torch.float64)])


def _inner_products(t_a: Tensor, gamma_a: Tensor, t_b: Tensor, gamma_b: Tensor) -> Tensor:
    """Integrals of products of profiles, each profile of mass one on (0, t]."""
    ratio = torch.minimum(t_a, t_b) / torch.maximum(t_a, t_b)
    overlap = ratio ** torch.where(t_a < t_b, gamma_b, gamma_a)
    return (gamma_a + 1.0) * (gamma_b + 1.0) / ((gamma_a + gamma_b + 1.0) * torch.maximum(t_a, t_b)) * overlap
