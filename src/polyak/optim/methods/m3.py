"""M3: Muon with a second, slow momentum that is written once a chunk of steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import (
    NON_NEGATIVE,
    POSITIVE,
    STATIC_IF_ZERO,
    Betas3,
    Eps,
    Hyper,
    Interval,
    Lr,
    Paper,
    Range,
    WeightDecay,
)
from polyak.memory.averages import debias
from polyak.memory.averages import heavy_ball as roll
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow, Places
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.adaptive import adam
from polyak.optim.vocabulary.matrices import NsCoefficients, NsDtype, NsEps, NsSteps, Polar, orthogonalize
from polyak.optim.vocabulary.weight import decay, descend

Form = Literal["ema", "paper"]


@factory
def multi_scale(form: Form = "ema") -> Rule:
    """M3's direction: ``(m + alpha * slow) / (sqrt(v) + eps)`` (arXiv:2512.24695, Algorithm 1).

    Each memory has a place, where Newton-Schulz stands. ``slow`` takes in the sum of a chunk's gradients at every
    ``frequency``-th step, and is read from the next step on.

    Args:
        form: ``"ema"`` averages, for matrices, with ``v`` bias corrected; ``"paper"`` sums that never decay.
    """
    averages = form == "ema"

    def scalars(h: Options, t: int) -> dict[str, Any]:
        b1, b2, b3 = h["betas"]
        ends = t % h["frequency"] == 0
        found = {"keep1": 1.0, "gain1": b1, "keep2": 1.0, "gain2": b2, "root": 1.0, "keep3": 1.0, "gain3": b3}
        if averages:
            found = {
                "keep1": b1, "gain1": 1 - b1, "keep2": b2, "gain2": 1 - b2, "root": 1 / math.sqrt(debias(float(b2), t)),
                "keep3": b3, "gain3": (1 - b3) / h["frequency"],
            }  # fmt: skip
        if not ends:
            found |= {"keep3": 1.0, "gain3": 0.0}
        return {**found, "left": 0.0 if ends else 1.0, "alpha": h["alpha"], "eps": h["eps"]}

    def update(x: Flow, s: Any, c: Places) -> tuple[Flow, dict[str, Tensor]]:
        m = roll(s.fast, x.u, c.keep1, c.gain1)
        v = roll(s.fast_sq, x.u * x.u, c.keep2, c.gain2)
        chunk = s.chunk + x.u
        mixed = c.place("fast", m) + c.alpha * c.place("slow", s.slow)
        new = {"fast": m, "fast_sq": v, "slow": roll(s.slow, chunk, c.keep3, c.gain3), "chunk": c.left * chunk}
        return x.but(u=mixed / (v.sqrt() * c.root + c.eps)), new

    slots = (
        Slot("fast", "momentum of every step", "signed"),
        Slot("fast_sq", "memory of the gradient's square", "positive"),
        Slot("slow", "momentum of the chunks", "signed"),
        Slot("chunk", "sum of the gradients of this chunk", "signed"),
    )
    known = M3.reads("betas", "alpha", "frequency", "eps")
    applies = _is_matrix if averages else _any
    return Rule(
        f"multi_scale_{form}", update, scalars, slots, known, timed=True, applies=applies, places=("fast", "slow")
    )


@factory
def to_rms() -> Rule:
    """Bring the direction of a matrix to a root mean square of ``update_rms``."""

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"update_rms": h["update_rms"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(u=x.u * (c.update_rms / (c.mean(x.u * x.u).sqrt() + 1e-12))), {}

    return Rule("to_rms", update, scalars, hypers=M3.reads("update_rms"), applies=_is_matrix)


@factory
def _adam_of_vectors() -> Rule:
    """Adam with the first two of three betas, for tensors with fewer than 2 dimensions."""
    rule = adam()

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return rule.scalars({**h, "betas": h["betas"][:2]}, t)

    known: tuple[Hyper, ...] = M3.reads("betas", "eps")
    return replace(rule, scalars=scalars, hypers=known, applies=lambda shape: not _is_matrix(shape), origin=None)


def _is_matrix(shape: torch.Size) -> bool:
    return len(shape) >= 2


def _any(shape: torch.Size) -> bool:
    return True


class M3(Method):
    """Multi-scale Momentum Muon (Behrouz et al., arXiv:2512.24695, Algorithm 1): a fast and a slow orthogonal momentum.

    ::

        M <- b1 * M + (1 - b1) * G;  V <- b2 * V + (1 - b2) * G^2;  B <- B + G
        U <- (NewtonSchulz(M) + alpha * NewtonSchulz(S)) / (sqrt(V / (1 - b2^t)) + eps)
        W <- W * (1 - lr * weight_decay) - lr * U * update_rms / RMS(U)
        every frequency-th step:  S <- b3 * S + (1 - b3) * B / frequency;  B <- 0
        (vectors: AdamW with b1 and b2)

    ``variant="paper"`` is Algorithm 1 to the letter: sums for averages (``M <- M + b1 * G``, ``V <- V + b2 * G^2``,
    ``S <- S + b3 * B``), no bias correction, no RMS, decay coupled to the gradient, vectors as matrices but without
    Newton-Schulz. Its step is of the size 1/|G|, so its lr has nothing to do with other methods', and shrinks as
    ``1/sqrt(t)``. The average form is an interpretation: betas, alpha, frequency and the RMS are not the paper's, which
    prints no values. Convolutions are seen as (out, rest). ``S`` counts from the second chunk on; its phase is that of
    the saved ``step``.

    There is no official code. Differs from the peers': ``NewtonSchulz(S)`` is computed in every step rather than kept,
    which saves a tensor and costs an iteration.

    Raises:
        ValueError: an argument outside what is allowed; a beta of 1 or more in the average form.
    """

    slug = "m3"
    family = "matrix"
    paper = Paper("Nested Learning: The Illusion of Deep Learning Architectures", 2025, "2512.24695")
    vectors = ["m3-peer", "m3-ema-card"]
    evidence = "independent code"

    lr: Annotated[Lr, Range(1e-4, 1e-1)] = 1e-3
    betas: Annotated[Betas3, NON_NEGATIVE, "retention of M, V and S; below 1 in the average form"] = (0.95, 0.999, 0.95)
    alpha: Annotated[float, NON_NEGATIVE, Range(0.1, 2.0), "weight of the slow momentum"] = 0.5
    frequency: Annotated[int, Interval(1, high_open=True), "steps of a chunk"] = 16
    ns_steps: NsSteps = 5
    ns_coefficients: NsCoefficients = "original"
    ns_eps: NsEps = 1e-7
    ns_dtype: NsDtype = None
    eps: Eps = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0
    update_rms: Annotated[
        float | None, POSITIVE, STATIC_IF_ZERO, "root mean square of a matrix's step over lr; None: as it comes"
    ] = 0.2
    variant: Annotated[Form, "averages, or the sums of the paper"] = "ema"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        polar = orthogonalize(Polar.of(options), adjust_lr=None, leave_vectors=True)
        memories = multi_scale(options["variant"]).at("fast", polar).at("slow", polar)
        if options["variant"] == "paper":
            return chain(decay("coupled"), memories, descend())
        scale = (to_rms(),) if options["update_rms"] else ()
        return chain(decay("decoupled"), memories, *scale, _adam_of_vectors(), descend())

    def check_options(self, group: Options) -> None:
        """Averages forget."""
        if group["variant"] == "ema" and max(map(float, group["betas"])) >= 1:
            raise ValueError(f"{self._owner()}: betas must be in [0, 1) with variant='ema', got {group['betas']!r}")
