"""Cautious Muon."""

from __future__ import annotations

from typing import ClassVar

from polyak.declare import Paper
from polyak.optim.methods.muon import Muon


class CMuon(Muon):
    """Cautious Muon (arXiv:2411.16085): the momentum is masked before it is orthogonalized.

    ::

        M <- momentum * M + (1 - momentum) * G
        U <- ((1 - momentum) * G + momentum * M) * [M * G > 0] / mean([M * G > 0])
        W <- W * (1 - lr * weight_decay) - lr * r(A, B) * NewtonSchulz(U)
        (vectors, embeddings, heads: AdamW)

    The mean is at least 1e-3; Newton-Schulz forgets it but for its eps. After the polar factor the step may have
    entries that oppose the gradient. All else is as in :class:`Muon`; AdamW is not masked.

    Raises:
        ValueError: as :class:`Muon`.
    """

    slug = "cmuon"
    family = "matrix"
    evidence = "own transcription"
    paper = Paper("Cautious Optimizers: Improving Training with One Line of Code", 2024, "2411.16085")
    masked: ClassVar[bool] = True
