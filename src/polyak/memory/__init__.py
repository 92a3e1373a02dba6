"""Floor 0: a memory as mathematics. Pure functions on tensors, the vocabulary of everything above.

* :mod:`~polyak.memory.averages`: exponential averages, heavy ball, their bias and half-life.
* :mod:`~polyak.memory.schedules`, :mod:`~polyak.memory.profiles`: how the weight of the past changes over a run.
* :mod:`~polyak.memory.geometry`: projections, angles, agreement of signs.
* :mod:`~polyak.memory.matrix`: Newton-Schulz and the exact polar factor.

Nothing here holds state, reads or writes files, or draws random numbers.
"""

from polyak.memory.averages import beta_of_half_life, debias, ema, half_life, heavy_ball
from polyak.memory.geometry import agreement, cosine, dot, norm, project, reject, rms, sign_times_magnitude
from polyak.memory.matrix import COEFFICIENTS, CoefficientSet, as_matrix, newton_schulz, polar
from polyak.memory.profiles import gamma_of_sigma_rel, posthoc_weights, sigma_rel_of_gamma
from polyak.memory.schedules import (
    constant_beta,
    cosine_beta,
    half_life_beta,
    power_beta,
    ramp_beta,
    uniform_beta,
    warmup_beta,
)

__all__ = [
    "COEFFICIENTS",
    "CoefficientSet",
    "agreement",
    "as_matrix",
    "beta_of_half_life",
    "constant_beta",
    "cosine",
    "cosine_beta",
    "debias",
    "dot",
    "ema",
    "gamma_of_sigma_rel",
    "half_life",
    "half_life_beta",
    "heavy_ball",
    "newton_schulz",
    "norm",
    "polar",
    "posthoc_weights",
    "power_beta",
    "project",
    "ramp_beta",
    "reject",
    "rms",
    "sigma_rel_of_gamma",
    "sign_times_magnitude",
    "uniform_beta",
    "warmup_beta",
]
