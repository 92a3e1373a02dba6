"""Floor 0: a memory as mathematics. Pure functions on tensors, the vocabulary of everything above.

* :mod:`~polyak.memory.averages`: exponential averages, heavy ball, their bias and half-life.
* :mod:`~polyak.memory.schedules`, :mod:`~polyak.memory.profiles`: how the weight of the past changes over a run.

Nothing here holds state, reads or writes files, or draws random numbers.
"""

from polyak.memory.averages import beta_of_half_life, debias, ema, half_life, heavy_ball
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
    "beta_of_half_life",
    "constant_beta",
    "cosine_beta",
    "debias",
    "ema",
    "gamma_of_sigma_rel",
    "half_life",
    "half_life_beta",
    "heavy_ball",
    "posthoc_weights",
    "power_beta",
    "ramp_beta",
    "sigma_rel_of_gamma",
    "uniform_beta",
    "warmup_beta",
]
