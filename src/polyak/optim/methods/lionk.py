"""Lion-K: Lion with the subgradient of any convex function in the place of the sign."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Paper
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.methods.lion import Lion, lion
from polyak.optim.vocabulary.convex import ON_VECTORS, READS, Kappa, Power, Share, Width, parameter_of, subgradient
from polyak.optim.vocabulary.weight import decay, descend


class LionK(Lion):
    """Lion-K (Chen et al., arXiv:2310.05898): Lion for any convex K, and what it minimizes under a constraint.

    ::

        z <- b1 * m + (1 - b1) * g
        p <- p * (1 - lr * weight_decay) - lr * K'(z)
        m <- b2 * m + (1 - b2) * g

    With a weight decay of w > 0 it minimizes ``f(p) + K*(w * p) / w``, K* the conjugate of K. As every step ``K'(z)``
    lies where K* is finite, ``w * p`` comes nearer to that set by ``1 - lr * w`` a step, and stays there once inside:

    ========  ==========================================================
    kappa     what is minimized
    ========  ==========================================================
    l1        f, all ``|p| <= 1/w``: Lion
    l2sq      ``f + w/2 * |p|^2``: momentum with decay
    l2        f, ``|p|_2 <= 1/w``, for each tensor
    lp        f, ``|p|_q <= 1/w`` with ``1/p + 1/q = 1``, for each tensor
    dead      ``f + e * sum |p|``, all ``|p| <= 1/w``: sparse
    huber     ``f + e * w/2 * |p|^2``, all ``|p| <= 1/w``
    pseudo    f with a smooth barrier, all ``|p| <= 1/w``
    logcosh   f with an entropy barrier, all ``|p| <= 1/w``
    group     f, the norm of every row ``<= 1/w``
    topk      f, all ``|p| <= 1/w`` and ``sum |p| <= k * N/w``
    nuclear   f, singular values ``<= 1/w``: Muon with decay
    ========  ==========================================================

    Rows are those of (shape[0], rest); tensors with fewer than 2 dimensions take l2 for "group" and l1 for "nuclear".
    ``e``, ``p`` and ``k`` have no published default: each is needed by the kappa that reads it, and refused by others.
    The lr is one of a kappa: l2 moves a tensor by lr in norm, l1 each of its entries.

    There is no authors' code; the vectors are a transcription of the equations.
    """

    slug = "lionk"
    family = "sign"
    paper = Paper("Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts", 2023, "2310.05898")
    vectors = [
        "lionk-l2sq-card", "lionk-l2-card", "lionk-lp-card", "lionk-dead-card", "lionk-huber-card",
        "lionk-pseudo-card", "lionk-logcosh-card", "lionk-group-card", "lionk-topk-card", "lionk-nuclear-card",
    ]  # fmt: skip
    evidence = "own transcription"

    kappa: Annotated[Kappa, "the convex function K"] = "l1"
    e: Width = None
    p: Power = None
    k: Share = None

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        form = decay("initial_lr" if options["decay_relative_to_initial_lr"] else "decoupled")
        kappa, share = options["kappa"], options["k"] or 1.0
        other = (subgradient(ON_VECTORS[kappa], only_vectors=True),) if kappa in ON_VECTORS else ()
        return chain(form, lion(sign=False), subgradient(kappa, share), *other, descend())

    def check_options(self, group: Options) -> None:
        """What K reads is there, and no other."""
        super().check_options(group)
        try:
            parameter_of(group["kappa"], group)
        except ValueError as error:
            raise ValueError(f"{self._owner()}: {error}") from None
        for name in {"e", "p", "k"} - {READS.get(group["kappa"])}:
            if group[name] is not None:
                raise ValueError(f"{self._owner()}: kappa={group['kappa']!r} does not read {name}={group[name]!r}")
