"""Spectra: Lanczos coefficients, Ritz values, and the laws of the batch size."""

import numpy as np

from polyak.optim.spectrum import (
    batch_eigenvalue,
    effective_batch,
    heavy_ball_optimum,
    lanczos,
    noise_edge,
    scaled_lr,
)
from tests.reproduce.vector import Vector, array

GIVEN = ("H", "v0", "B", "spike_lambda", "polyak")
"""What is recorded as an input without the name of one; of ``polyak`` the first two."""


def rmt(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """All outputs of the cases."""
    vector.read_all("base_lr", "base_batch", "P", "N", "noise_var", "lanczos_steps")
    given = {key: vector.given(key) for key in GIVEN}
    H, start, batches = given["H"], given["v0"], [int(b) for b in given["B"]]
    largest, smallest = map(float, given["polyak"][:2])
    whole = lanczos(lambda v: H @ v, start, len(H))
    found = {"eigenvalues": whole.ritz().nodes, "alpha": whole.alpha, "beta": whole.beta}
    for steps in vector.option("lanczos_steps"):
        found[f"nodes_{steps}"], found[f"weights_{steps}"] = lanczos(lambda v: H @ v, start, steps).ritz()
    lr, base = vector.option("base_lr"), vector.option("base_batch")
    P, N, noise = (vector.option(name) for name in ("P", "N", "noise_var"))
    return {key: array(value) for key, value in given.items()} | {
        **{key: array(value) for key, value in found.items()},
        "lr_linear": np.array([scaled_lr(lr, base, b, "linear") for b in batches]),
        "lr_sqrt": np.array([scaled_lr(lr, base, b, "sqrt") for b in batches]),
        "b_eff": np.array([effective_batch(b, N) for b in batches]),
        "noise_edge": np.array([noise_edge(b, P, N, noise) for b in batches]),
        "batch_lambda": np.array(
            [[batch_eigenvalue(float(e), b, P, N, noise) for b in batches] for e in given["spike_lambda"]]
        ),
        "polyak": np.array([largest, smallest, *heavy_ball_optimum(largest, smallest)]),
    }


RULES = {"rmt-slq": rmt}
