"""Hybrid-AuON: a brake behind Newton-Schulz."""

from __future__ import annotations

from polyak.declare import Paper
from polyak.optim.engine.rule import Options, Rule
from polyak.optim.methods.auon import AuON
from polyak.optim.vocabulary.matrices import NsDtype, NsSteps, Polar, orthogonalize


class HybridAuON(AuON):
    """Hybrid-AuON (arXiv:2509.24320): Muon's direction with AuON's brake, and AdamW for what is no matrix.

    ::

        M <- momentum * M + (1 - momentum) * G;  U <- (1 - momentum) * G + momentum * M
        O <- NewtonSchulz(U) for at least 2 dimensions, else U
        r <- sqrt(mean(cosh(gamma * O / |O|)^2))
        W <- W * (1 - lr * weight_decay) - lr * O / r
        (vectors, embeddings, heads: AdamW)

    The brake is about 1 for all but tiny tensors, so this is Muon without a scale. Matrices are the last two
    dimensions: of a convolution every kernel is one. The paper takes one Newton-Schulz step, the authors' code 5.
    ``variant="paper"`` normalizes behind Newton-Schulz, an interpretation that has not been published.

    Differs from the authors' code: Newton-Schulz runs in bfloat16 on CUDA, in float32 on the CPU; and as
    :class:`AuON`.

    Raises:
        ValueError: as :class:`AuON`.
    """

    slug = "hybrid_auon"
    family = "matrix"
    paper = Paper("AuON: A Linear-time Alternative to Orthogonal Momentum Updates", 2025, "2509.24320")
    vectors = ["auon-hybrid"]

    ns_steps: NsSteps = 5
    ns_dtype: NsDtype = None

    @classmethod
    def read_out(cls, options: Options) -> tuple[Rule, ...]:
        """Newton-Schulz before the brake."""
        polar = orthogonalize(Polar.of(options), None, "batched", leave_vectors=True)
        return (polar, *super().read_out(options))
