"""Adaptive torque-aware momentum with decoupled weight decay."""

from __future__ import annotations

from typing import Annotated, ClassVar

from polyak.declare import Paper, Range, WeightDecay
from polyak.optim.methods.adatam import AdaTAM
from polyak.optim.vocabulary.weight import DecayForm


class AdaTAMW(AdaTAM):
    """:class:`AdaTAM` with decoupled weight decay before the step.

    ::

        S <- <m, g> / (|m| |g|); s <- decay_rate * s + (1 - decay_rate) * S; d <- (1 + s) / 2
        m <- b1 * m + (eps + d) * g
        v <- b2 * v + (1 - b2) * g^2
        p <- p * (1 - lr * weight_decay) - lr * m / (sqrt(v) + eps)
    """

    slug = "adatamw"
    family = "adaptive"
    paper = Paper("Torque-Aware Momentum", 2024, "2412.18790")
    vectors = ["adatamw-card"]
    evidence = "own transcription"
    decay_form: ClassVar[DecayForm] = "decoupled"

    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1), "decoupled weight decay"] = 0.0
