"""Floor 0: a memory as mathematics. Pure functions on tensors, the vocabulary of everything above.

* :mod:`~polyak.memory.averages`: exponential averages, heavy ball, their bias and half-life.
* :mod:`~polyak.memory.schedules`, :mod:`~polyak.memory.profiles`: how the weight of the past changes over a run.
* :mod:`~polyak.memory.geometry`: projections, angles, agreement of signs.
* :mod:`~polyak.memory.matrix`: Newton-Schulz, the exact polar factor, inverse roots.
* :mod:`~polyak.memory.sparsity`: N:M masks.
* :mod:`~polyak.memory.flat`: several tensors as one vector.
* :mod:`~polyak.memory.history`: windows and ring buffers.
* :mod:`~polyak.memory.storage`: square-matricized factors and packed signs.
* :mod:`~polyak.memory.tasks`: gradients of several tasks as one matrix.
* :mod:`~polyak.memory.noise`: random bits from an index and a seed.
* :mod:`~polyak.memory.rounding`: stochastic rounding, Kahan's compensated sum.
* :mod:`~polyak.memory.codecs`: the forms in which a memory is kept between steps.

Nothing here holds state, reads or writes files, or draws random numbers.
"""

from polyak.memory.averages import beta_of_half_life, debias, ema, ema_, half_life, heavy_ball
from polyak.memory.codecs import Bfloat16, Codec, Factored, Float32, Int8, codec
from polyak.memory.flat import flat, unflat
from polyak.memory.geometry import agreement, cosine, dot, norm, project, reject, rms, sign_times_magnitude
from polyak.memory.history import push, ring_in_order, ring_valid_count, ring_write, ring_write_truncating
from polyak.memory.matrix import COEFFICIENTS, CoefficientSet, as_matrix, inverse_roots, newton_schulz, polar
from polyak.memory.noise import uniform, uniform_bits
from polyak.memory.profiles import gamma_of_sigma_rel, posthoc_weights, sigma_rel_of_gamma
from polyak.memory.rounding import kahan_add, round_stochastic, to_bfloat16_stochastic
from polyak.memory.schedules import (
    constant_beta,
    cosine_beta,
    half_life_beta,
    power_beta,
    ramp_beta,
    uniform_beta,
    warmup_beta,
)
from polyak.memory.sparsity import n_of_m
from polyak.memory.storage import (
    Factors,
    factorize,
    pack_bits,
    reconstruct,
    square_shape,
    unpack_bits,
)
from polyak.memory.tasks import cagrad, cagrad_weights, equalize, magnitude_similarity, pcgrad

__all__ = [
    "COEFFICIENTS",
    "Bfloat16",
    "Codec",
    "CoefficientSet",
    "Factored",
    "Factors",
    "Float32",
    "Int8",
    "agreement",
    "as_matrix",
    "beta_of_half_life",
    "cagrad",
    "cagrad_weights",
    "codec",
    "constant_beta",
    "cosine",
    "cosine_beta",
    "debias",
    "dot",
    "ema",
    "ema_",
    "equalize",
    "factorize",
    "flat",
    "gamma_of_sigma_rel",
    "half_life",
    "half_life_beta",
    "heavy_ball",
    "inverse_roots",
    "kahan_add",
    "magnitude_similarity",
    "n_of_m",
    "newton_schulz",
    "norm",
    "pack_bits",
    "pcgrad",
    "polar",
    "posthoc_weights",
    "power_beta",
    "project",
    "push",
    "ramp_beta",
    "reconstruct",
    "reject",
    "ring_in_order",
    "ring_valid_count",
    "ring_write",
    "ring_write_truncating",
    "rms",
    "round_stochastic",
    "sigma_rel_of_gamma",
    "sign_times_magnitude",
    "square_shape",
    "to_bfloat16_stochastic",
    "unflat",
    "uniform",
    "uniform_beta",
    "uniform_bits",
    "unpack_bits",
    "warmup_beta",
]
