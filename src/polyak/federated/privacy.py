"""What a run has cost in privacy: Renyi accounting of the Gaussian mechanism, sampled or not, and its conversion.

Neighbours differ by one record, added or taken away. For the rules of ``polyak.federated.rules`` that is a record
replaced by an empty one, whose gradient is zero: the number of a client's records is public. A noise multiplier is the
standard deviation of the noise over what one record can change. An own implementation of the formulas of Mironov,
Talwar and Zhang (arXiv:1908.10530) for Poisson sampling, in logarithms. The tighter PRV accountant is Opacus', where
that is installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from polyak.declare import HALF_OPEN_UNIT, NON_NEGATIVE, OPEN_UNIT, POSITIVE, UNIT, Interval, whole

ORDERS: tuple[float, ...] = (*(1 + i / 10 for i in range(1, 100)), *(float(a) for a in range(12, 64)))
"""The orders that Opacus looks at: 1.1 to 10.9 by 0.1, and 12 to 63."""
LARGEST_NOISE = 1e6
TERMS = 64
NEGLIGIBLE = -30.0
"""The logarithm of terms with which the series of a fractional order ends."""


class Spent(NamedTuple):
    """A privacy loss, and the order of the Renyi divergence that it comes from."""

    epsilon: float
    order: float


def rdp_gaussian(
    noise_multiplier: float, sample_rate: float, steps: int = 1, orders: Sequence[float] = ORDERS
) -> list[float]:
    """The Renyi divergence at each order after ``steps`` releases of a Gaussian mechanism on a Poisson sample.

    ::

        RDP(a) = steps log A_a / (a - 1),   A_a = E_0 ((1 - q) + q p_1(z) / p_0(z))^a;   a / (2 s^2) for q = 1

    Args:
        noise_multiplier: s, in [0, inf); 0 is no privacy.
        sample_rate: q, in [0, 1].
        steps: releases, at least 0.
        orders: a, each above 1.

    Raises:
        ValueError: an argument outside what is allowed.
    """
    number("noise_multiplier", noise_multiplier, NON_NEGATIVE)
    number("sample_rate", sample_rate, UNIT)
    whole("steps", steps, "rdp_gaussian", Interval(0))
    for order in orders:
        number("orders", order, Interval(1.0, math.inf, low_open=True))
    if sample_rate == 0 or steps == 0:
        return [0.0] * len(orders)
    if noise_multiplier == 0:
        return [math.inf] * len(orders)
    if sample_rate == 1:
        return [steps * a / (2 * noise_multiplier**2) for a in orders]
    return [steps * _log_moment(noise_multiplier, sample_rate, a) / (a - 1) for a in orders]


def epsilon_of(rdp: Sequence[float], delta: float, orders: Sequence[float] = ORDERS) -> Spent:
    """The privacy loss epsilon at delta that Renyi divergences amount to.

    ::

        epsilon = min_a RDP(a) + log((a - 1) / a) - (log delta + log a) / (a - 1);   0 where some RDP(a) is 0

    Args:
        rdp: a divergence for each order; those of several releases are added.
        delta: in (0, 1).
        orders: the orders.

    Raises:
        ValueError: an argument outside what is allowed, or other numbers of divergences than of orders.
    """
    number("delta", delta, OPEN_UNIT)
    if len(rdp) != len(orders) or not len(orders):
        raise ValueError(f"rdp must be one for each of the {len(orders)} orders, got {len(rdp)}")
    if 0.0 in rdp:  # the two are the same, of which the conversion knows nothing
        return Spent(0.0, orders[list(rdp).index(0.0)])
    found = [
        Spent(r + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1), a)
        for r, a in zip(rdp, orders, strict=True)
    ]
    best = min(found, key=lambda one: one.epsilon)
    return Spent(max(best.epsilon, 0.0), best.order)


class RDPAccountant:
    """Adds up releases that may differ in noise and sampling.

    Attributes:
        history: noise multiplier, sample rate and number of releases, equal neighbours in one entry.
    """

    def __init__(self) -> None:
        self.history: list[tuple[float, float, int]] = []

    def step(self, noise_multiplier: float, sample_rate: float, steps: int = 1) -> None:
        """Count releases.

        Raises:
            ValueError: an argument outside what is allowed.
        """
        number("noise_multiplier", noise_multiplier, NON_NEGATIVE)
        number("sample_rate", sample_rate, UNIT)
        count = whole("steps", steps, "RDPAccountant")
        if self.history and self.history[-1][:2] == (noise_multiplier, sample_rate):
            count += self.history.pop()[2]
        self.history.append((noise_multiplier, sample_rate, count))

    def spent(self, delta: float, orders: Sequence[float] = ORDERS) -> Spent:
        """The privacy loss so far; see :func:`epsilon_of`."""
        total = [0.0] * len(orders)
        for noise, rate, steps in self.history:
            total = [a + b for a, b in zip(total, rdp_gaussian(noise, rate, steps, orders), strict=True)]
        return epsilon_of(total, delta, orders)


def noise_multiplier_for(
    epsilon: float, delta: float, sample_rate: float, steps: int, tolerance: float = 0.01
) -> float:
    """The smallest noise multiplier, within a tolerance of epsilon, that spends at most ``epsilon``.

    By doubling from 20 and bisection, which are the steps of Opacus.

    Raises:
        ValueError: an argument outside what is allowed, or a budget that no noise below 1e6 keeps.
    """
    number("epsilon", epsilon, POSITIVE)
    number("tolerance", tolerance, POSITIVE)

    def spent(noise: float) -> float:
        return epsilon_of(rdp_gaussian(noise, sample_rate, steps), delta).epsilon

    low, high = 0.0, 20.0
    while (reached := spent(high)) > epsilon:
        high *= 2
        if high > LARGEST_NOISE:
            raise ValueError(f"epsilon must be what noise below {LARGEST_NOISE:g} can keep, got {epsilon}")
    while epsilon - reached > tolerance:
        middle = (low + high) / 2
        value = spent(middle)
        if value < epsilon:
            high, reached = middle, value
        else:
            low = middle
    return high


def prv_epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """The privacy loss by Opacus' PRV accountant, tighter than the Renyi one and accurate to its 0.01.

    Raises:
        ImportError: Opacus is not installed; names the extra.
        ValueError: an argument outside what is allowed.
    """
    number("noise_multiplier", noise_multiplier, POSITIVE)
    number("sample_rate", sample_rate, UNIT)
    number("delta", delta, OPEN_UNIT)
    try:
        from opacus.accountants import PRVAccountant
    except ImportError as error:
        raise ImportError("the PRV accountant needs Opacus: pip install 'polyak[federated]'") from error
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sample_rate, whole("steps", steps, "prv_epsilon"))]
    return float(accountant.get_epsilon(delta=delta))


def echoes(momentum: float, norms: Sequence[float]) -> list[float]:
    """What a record that is drawn in every round changes of a client's momentum, over the round's own bound R_t / B.

    ::

        w_t = (1 - momentum) sum_{s <= t} momentum^(t - s) R_s / R_t

    Below 1 at first, since a memory starts empty; above 1 where the bounds fall, since it still holds what was
    clipped at larger ones. Without momentum 1, whatever the bounds.

    Args:
        momentum: weight of the memory, in [0, 1).
        norms: R_t of each round, above 0; only their ratios count.

    Raises:
        ValueError: an argument outside what is allowed.
    """
    number("momentum", momentum, HALF_OPEN_UNIT)
    found, memory = [], 0.0
    for bound in norms:
        number("norms", bound, POSITIVE)
        memory = momentum * memory + (1 - momentum) * bound
        found.append(memory / bound)
    return found


def rdp_worst_case(noise_multiplier: float, changes: Sequence[float], orders: Sequence[float] = ORDERS) -> list[float]:
    """Rounds of client momentum in each of which a record may count in full: holds for any sampling.

    ::

        RDP(a) = a sum_t w_t^2 / (2 z^2)

    Args:
        noise_multiplier: z, in [0, inf); 0 is no privacy.
        changes: w_t of each round, such as :func:`echoes` gives.
        orders: a, each above 1.

    Raises:
        ValueError: an argument outside what is allowed.
    """
    squared = sum(w * w for w in changes)
    return [squared * one if squared else 0.0 for one in rdp_gaussian(noise_multiplier, 1.0, 1, orders)]


def rdp_limited_participation(
    noise_multiplier: float, momentum: float, rounds: int, participations: int, separation: int,
    orders: Sequence[float] = ORDERS, norm_ratio: float = 1.0,
) -> list[float]:  # fmt: skip
    """Rounds of client momentum where a record is drawn at most k times, at least ``separation`` rounds apart.

    ::

        RDP(a) = a ||A v||^2 / (2 z^2),   A_ts = (1 - momentum) (momentum r)^(t - s) for t >= s,   v marks k rounds

    One Gaussian release of all rounds together. Draws as early as they can be echo longest, so those are taken. The
    bounds R_t of rounds may fall: r bounds each R_t / R_{t + 1}, so that R_s / R_t <= r^(t - s).

    Raises:
        ValueError: an argument outside what is allowed, r among them where it is not in [1, 1 / momentum).
    """
    name = "rdp_limited_participation"
    number("momentum", momentum, HALF_OPEN_UNIT)
    most = 1 / momentum if momentum else math.inf
    number("norm_ratio", norm_ratio, Interval(1.0, most, high_open=True))
    rounds, k = whole("rounds", rounds, name), whole("participations", participations, name)
    drawn = set(range(0, rounds, whole("separation", separation, name))[:k])
    echo, changes = 0.0, []
    for t in range(rounds):
        echo = momentum * norm_ratio * echo + (1 - momentum) * (t in drawn)
        changes.append(echo)
    return rdp_worst_case(noise_multiplier, changes, orders)


def _log_moment(noise: float, rate: float, order: float) -> float:
    """``log A_a`` for 0 < q < 1."""
    if float(order).is_integer():
        terms = _logs(noise, rate, order, torch.arange(int(order) + 1, dtype=torch.float64))
        return float(torch.logsumexp(terms, 0))
    count = TERMS
    while True:
        logs, signs = _halves(noise, rate, order, count)
        small = logs.amax(0) < NEGLIGIBLE
        if bool(small.any()):
            end = int(small.nonzero()[0]) + 1
            logs, signs = logs[:, :end], signs[:end]
            peak = logs.max()
            return float(peak + torch.log((signs * (logs - peak).exp()).sum()))
        count *= 2


def _log_binomial(order: float, i: Tensor) -> tuple[Tensor, Tensor]:
    """``log |a over i|`` and its sign for i = 0, 1, ..."""
    factors = (order - i[:-1]) / (i[:-1] + 1)
    zero = i.new_zeros(1)
    return torch.cat([zero, factors.abs().log().cumsum(0)]), torch.cat([zero + 1, factors.sign().cumprod(0)])


def _logs(noise: float, rate: float, order: float, i: Tensor) -> Tensor:
    """The logarithm of ``(a over i) q^i (1 - q)^(a - i) exp((i^2 - i) / (2 s^2))``."""
    binomial, _ = _log_binomial(order, i)
    return binomial + i * math.log(rate) + (order - i) * math.log1p(-rate) + (i * i - i) / (2 * noise**2)


def _halves(noise: float, rate: float, order: float, count: int) -> tuple[Tensor, Tensor]:
    """The two parts of the first terms, split where the two densities weigh alike, and the terms' signs."""
    i = torch.arange(count, dtype=torch.float64)
    j = order - i
    binomial, signs = _log_binomial(order, i)
    split = noise**2 * math.log(1 / rate - 1) + 0.5
    left = _logs(noise, rate, order, i) + torch.special.log_ndtr((split - i) / noise)
    right = binomial + j * math.log(rate) + i * math.log1p(-rate) + (j * j - j) / (2 * noise**2)
    return torch.stack([left, right + torch.special.log_ndtr((j - split) / noise)]), signs


def number(name: str, value: float, allowed: Interval) -> None:
    """Refuse a number that is not in an interval, naming it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or float(value) not in allowed:
        raise ValueError(f"{name} must be in {allowed}, got {value!r}")
