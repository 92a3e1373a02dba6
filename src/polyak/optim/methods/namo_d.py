"""NAMO-D: NAMO with a size for each column."""

from __future__ import annotations

from polyak.declare import Paper
from polyak.optim.engine.rule import Options, Rule
from polyak.optim.methods.namo import NAMO, ClampC, sized_polar
from polyak.optim.vocabulary.matrices import Polar


class NAMOD(NAMO):
    """NAMO-D (arXiv:2602.17080): NAMO with a step for each column, that is for each unit of a layer's input.

    ::

        M <- momentum * M + (1 - momentum) * G;  U <- (1 - momentum) * G + momentum * M
        v_j <- beta2 * v_j + (1 - beta2) * |G_j|^2
        d_j <- |U_j| / (sqrt(v_j) + eps), kept within [clamp_c, 1 / clamp_c] times their mean
        a_j <- lr * sqrt(1 - beta2^t) / (1 - momentum^t) * d_j
        W_j <- W_j * (1 - weight_decay * min(a_j, 1)) - min(a_j * scale * sqrt(max(A, B)), 1) * NewtonSchulz(U)_j
        (vectors, embeddings, heads: AdamW)

    With ``clamp_c=1`` all columns step alike, with 0 each for itself. Tensors with more than 2 dimensions have the
    columns of (shape[0], rest). All else is as in :class:`NAMO`.

    Raises:
        ValueError: an argument outside what is allowed, or a tensor with fewer than 2 dimensions in a matrix group.
    """

    slug = "namo_d"
    family = "matrix"
    paper = Paper("Adam Improves Muon: Adaptive Moment Estimation with Orthogonalized Momentum", 2026, "2602.17080")
    vectors = ["namo-d", "namo-d-bf16", "namo-d-svd"]

    clamp_c: ClampC = 0.75

    @classmethod
    def sized(cls, options: Options) -> Rule:
        clamped = options["clamp_c"] > 0
        return sized_polar("column", Polar.of(options), options["scale"], options["clip_step"], clamped)
