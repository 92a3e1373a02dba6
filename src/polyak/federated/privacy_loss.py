"""The privacy loss of Gaussian releases on Poisson samples as a distribution, composed by Fourier transforms.

Tighter than Renyi divergences, which bound its moments. The privacy loss random variable is put on a grid (Koskela,
Jaelkoe and Honkela, arXiv:1906.03049; Gopi, Lee and Wutschitz, arXiv:2106.02848) so that its mean is kept, and the sum
over releases is a power of its transform. Accurate to about a hundredth of a percent; no bound on that error is kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from polyak.declare import NON_NEGATIVE, OPEN_UNIT, POSITIVE, SHARE, whole
from polyak.federated.privacy import number

POINTS = 1 << 17
TAIL = 12.0
"""Standard deviations of the noise beyond which a release is not looked at."""


def numerical_epsilon(
    noise_multiplier: float, sample_rate: float, steps: int, delta: float, margin: float = 0.0
) -> float:
    """The privacy loss at delta of ``steps`` Gaussian releases on Poisson samples, a record added or taken away.

    ::

        delta(epsilon) = E max(0, 1 - exp(epsilon - sum_t L_t)),   L = log p_1(z) / p_0(z)

    Args:
        noise_multiplier: standard deviation of the noise over what a record changes, above 0.
        sample_rate: with which a record is drawn, in (0, 1].
        steps: releases, at least 1.
        delta: in (0, 1).
        margin: added to the result for the error, at least 0; Opacus' PRV accountant adds its 0.01.

    Raises:
        ValueError: an argument outside what is allowed.
    """
    number("noise_multiplier", noise_multiplier, POSITIVE)
    number("sample_rate", sample_rate, SHARE)
    number("delta", delta, OPEN_UNIT)
    number("margin", margin, NON_NEGATIVE)
    count = whole("steps", steps, "numerical_epsilon")
    both = (_losses(noise_multiplier, sample_rate, away) for away in (True, False))
    return max(_epsilon(losses, chances, count, delta) for losses, chances in both) + margin


def _losses(noise: float, rate: float, away: bool) -> tuple[Tensor, Tensor]:
    """Values of the loss of one release, with their chances: of a record taken away, or added."""
    edges = torch.linspace(-TAIL * noise - 1, TAIL * noise + 1, POINTS + 1, dtype=torch.float64)
    if away:
        edges = edges + 0.5
    cumulated = torch.special.ndtr(edges / noise)
    if away:  # drawn from the mixture
        cumulated = (1 - rate) * cumulated + rate * torch.special.ndtr((edges - 1) / noise)
    middle = (edges[1:] + edges[:-1]) / 2
    ratio = (2 * middle - 1) / (2 * noise**2)
    inside = ratio if rate == 1 else torch.logaddexp(ratio.new_tensor(math.log1p(-rate)), math.log(rate) + ratio)
    return (inside if away else -inside), cumulated.diff()


def _epsilon(losses: Tensor, chances: Tensor, steps: int, delta: float) -> float:
    chances = chances / chances.sum()
    mean = float(chances @ losses)
    spread = math.sqrt(float(chances @ (losses - mean).square()))
    largest = float(losses[chances > 1e-15].abs().max())
    half = largest + steps * abs(mean) + 10 * spread * math.sqrt(steps)
    width = 2 * half / POINTS
    grid = (torch.arange(POINTS, dtype=torch.float64) - POINTS // 2) * width
    places = ((losses.clamp(-half * 0.999, half * 0.999) - grid[0]) / width).clamp(0, POINTS - 2)
    low = places.floor().long()
    share = places - low  # between neighbours, so that the mean is kept
    mass = torch.zeros(POINTS, dtype=torch.float64)
    mass.index_add_(0, low, chances * (1 - share)).index_add_(0, low + 1, chances * share)
    spectrum = torch.fft.rfft(torch.fft.ifftshift(mass))
    total = torch.fft.fftshift(torch.fft.irfft(spectrum**steps, POINTS)).clamp(min=0)
    return _smallest(grid, total, delta)


def _smallest(grid: Tensor, mass: Tensor, delta: float) -> float:
    """The smallest epsilon, at least 0, with ``delta(epsilon) <= delta``."""
    low, high = 0.0, float(grid[-1])
    for _ in range(60):
        middle = (low + high) / 2
        above = (-torch.expm1(middle - grid)).clamp(min=0)
        low, high = (middle, high) if float(mass @ above) > delta else (low, middle)
    return high
