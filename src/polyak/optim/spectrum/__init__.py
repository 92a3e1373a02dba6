"""The spectrum of the loss's curvature on a batch, and the learning rates that follow from it (arXiv:2006.09092)."""

from polyak.optim.spectrum.curvature import BatchCurvature
from polyak.optim.spectrum.lanczos import Spectrum, Tridiagonal, lanczos, spectrum
from polyak.optim.spectrum.learner import SpectrumLearner
from polyak.optim.spectrum.scaling import (
    batch_eigenvalue,
    effective_batch,
    heavy_ball_optimum,
    noise_edge,
    noise_variance,
    scaled_lr,
    stable_lr,
)

__all__ = [
    "BatchCurvature",
    "Spectrum",
    "SpectrumLearner",
    "Tridiagonal",
    "batch_eigenvalue",
    "effective_batch",
    "heavy_ball_optimum",
    "lanczos",
    "noise_edge",
    "noise_variance",
    "scaled_lr",
    "spectrum",
    "stable_lr",
]
