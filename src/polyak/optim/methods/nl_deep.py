"""Deep Momentum: the memory of gradients is a small network that learns while the weights do."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import NON_NEGATIVE, STATIC, Eps, Interval, Lr, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.matrices import orthogonalize
from polyak.optim.vocabulary.weight import decay, descend

Objective = Literal["l2", "dot"]


@factory
def deep_memory(hidden: int = 16, objective: Objective = "l2", seed: int = 0) -> Rule:
    """A network ``m(x) = B tanh(A x)`` that learns ``m(x) = -x`` of a gradient's rows; reads out ``-m(x)``.

    One inner step of gradient descent, with both layers forgetting, comes before the read-out (arXiv:2512.24695,
    eq. 50). Where a gradient is not finite it is left out, and ``skipped`` counts.

    Args:
        hidden: width of the network.
        objective: ``"l2"`` ``|m(x) + x|^2 / 2``, or ``"dot"`` ``<m(x), x>``, means over the rows.
        seed: of the layer that starts at random; every tensor starts alike.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"rate": h["inner_lr"], "forget": h["forget"], "eps": h["eps"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        keys = x.u / (x.u.square().mean().sqrt() + c.eps)
        active = torch.tanh(keys @ s.inner.T)
        error = (active @ s.outer.T + keys if objective == "l2" else keys) / keys.shape[0]
        steps = ((error @ s.outer) * (1 - active.square())).T @ keys, error.T @ active
        known = x.u.isfinite().all()
        inner, outer = (
            torch.where(known, c.forget * w - c.rate * step, w)
            for w, step in zip((s.inner, s.outer), steps, strict=True)
        )
        answer = torch.tanh(keys @ inner.T) @ outer.T
        return x.but(u=torch.where(known, -answer, 0.0)), {
            "inner": inner,
            "outer": outer,
            "skipped": s.skipped + ~known,
        }

    def start(shape: tuple[int, ...]) -> Tensor:
        source = torch.Generator("cpu").manual_seed(seed)
        drawn = torch.randn(shape, generator=source, dtype=torch.float64, device="cpu")
        return drawn / math.sqrt(max(shape[1], 1))

    slots = (
        Slot("inner", "first layer", shape=lambda shape: (hidden, _columns(shape)), initial=start),
        Slot("outer", "second layer", shape=lambda shape: (_columns(shape), hidden)),
        Slot("skipped", "gradients that were not finite", shape="scalar"),
    )
    return Rule("deep_memory", update, scalars, slots, NLDeep.reads("inner_lr", "forget", "eps"))


def _columns(shape: torch.Size) -> int:
    """Columns of a tensor seen as (shape[0], rest); of an empty one, in whose stead a zero goes through, one."""
    return shape.numel() // shape[0] if shape and shape.numel() else 1


class NLDeep(Method):
    """Deep Momentum Gradient Descent (Behrouz et al., arXiv:2512.24695, eq. 50): an MLP for a momentum.

    ::

        X <- G / (RMS(G) + eps), its rows are the samples
        L(A, B) <- mean over rows |B tanh(A x) + x|^2 / 2     (objective "dot": mean <B tanh(A x), x>)
        A, B <- forget * (A, B) - inner_lr * gradient of L
        W <- W * (1 - lr * weight_decay) + lr * B tanh(A X)

    G is a gradient as a matrix (out, rest); of a vector each entry is a row. A, of ``hidden`` rows, starts at random,
    the same for every tensor, B at 0. The state is ``2 * hidden`` numbers a column, much less than a momentum for tall
    matrices. ``orthogonalize`` steps matrices by the polar factor of the answer (eq. 52).

    An interpretation: the paper leaves network, samples and objective open, prints no value, and has no official code.
    Runs uncompiled; sharded tensors are refused. A gradient that is not finite is not learned from, and counted in
    ``state[p]["skipped"]``.

    Raises:
        ValueError: an argument outside what is allowed.
    """

    slug = "nl_deep"
    family = "momentum"
    paper = Paper("Nested Learning: The Illusion of Deep Learning Architectures", 2025, "2512.24695")
    vectors = ["nl-deep-card"]
    evidence = "interpretation"

    lr: Annotated[Lr, Range(1e-3, 1.0)] = 0.02
    inner_lr: Annotated[float, NON_NEGATIVE, Range(1e-2, 1.0), "learning rate of the memory"] = 0.1
    forget: Annotated[float, Interval(0, 1, low_open=True), "retention of the memory's weights"] = 0.999
    hidden: Annotated[int, Interval(1, 4096), STATIC, "width of the memory"] = 16
    objective: Annotated[Objective, "what the memory learns"] = "l2"
    eps: Annotated[Eps, "added to the root mean square of the gradient"] = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0
    orthogonalize: Annotated[bool, "step matrices by the polar factor of the answer"] = False
    seed: Annotated[int, Interval(0, 2**31), STATIC, "of the memory's first layer"] = 0

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        memory = deep_memory(options["hidden"], options["objective"], options["seed"])
        polar = (orthogonalize(adjust_lr=None, leave_vectors=True),) if options["orthogonalize"] else ()
        return chain(decay("decoupled"), memory, *polar, descend())
