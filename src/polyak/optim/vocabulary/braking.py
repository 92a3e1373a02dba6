"""Braking: a gradient along the velocity counts less, one against it more."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from torch import Tensor

from polyak.declare import NON_NEGATIVE, POSITIVE, WeightDecay, hyper
from polyak.optim.engine.context import Flow
from polyak.optim.engine.rule import Options, Rule, factory

Granularity = Literal["tensor", "filter", "global"]
Granular = Annotated[Granularity, "one cosine a tensor, a row (shape[0]), or over all tensors"]
Rho = Annotated[float, NON_NEGATIVE, "braking coefficient; 0: none"]
NormEps = Annotated[float, POSITIVE, "smallest product of norms that the cosine is divided by"]
RHO, EPS = hyper("rho", Rho, 1.0), hyper("eps", NormEps, 1e-8)


def _cosine(g: Tensor, v: Tensor, c: Any, granularity: Granularity) -> Tensor:
    terms = (g * v, g * g, v * v)
    if granularity == "filter":
        rows = c.rows(*terms)
        # rows of one entry have no angle of their own: the tensor as a whole, which is what biases are
        dot, gg, vv = rows.whole if g.shape[-1] == 1 else rows.row
    else:
        dot, gg, vv = c.total(*terms) if granularity == "global" else c.sum(*terms)
    cosine: Tensor = dot / (gg.sqrt() * vv.sqrt()).clamp(min=c.brake_eps)
    return cosine


@factory
def braked(
    rule: Rule,
    memory: str = "momentum_buffer",
    granularity: Granularity = "tensor",
    decay_after: bool = False,
    clamp: bool = False,
) -> Rule:
    """Any rule with a velocity, of whose gradient as much comes in as the angle to the velocity says.

    ``a = <g, v> / max(|g| |v|, eps)``; ``g <- (1 - rho * a) * g`` (adaptive braking, arXiv:2007.01397; an
    interpretation), with the velocity as it was before the step. All that the rule remembers is made of the scaled
    gradient; of Adam that is the second moment too. The hyperparameter ``eps`` is the rule's own where it has one.

    Args:
        rule: the rule.
        memory: the name of its velocity.
        granularity: one cosine a tensor, one a row of tensors (shape[0] rows), or one over all.
        decay_after: add ``weight_decay * p`` behind the scaling (L2).
        clamp: let the factor not fall below 0, which it may for ``rho`` above 1.

    Raises:
        ValueError: the rule has no such memory.
    """
    if memory not in [slot.name for slot in rule.slots]:
        raise ValueError(f"braked: {rule.name} has no memory {memory!r}, only {[slot.name for slot in rule.slots]}")

    def scalars(h: Options, t: int) -> dict[str, Any]:
        late = {"late_decay": h["weight_decay"]} if decay_after else {}
        return {**rule.scalars(h, t), "rho": h["rho"], "brake_eps": h["eps"], **late}

    def update(x: Flow, s: Any, c: Any) -> tuple[Flow, dict[str, Tensor]]:
        alpha = 1 - c.rho * _cosine(x.u, getattr(s, memory), c, granularity)
        if clamp:
            alpha = alpha.clamp(min=0.0)
        c.note("alpha", alpha)
        u = alpha.to(x.u.dtype) * x.u
        return rule.update(x.but(u=u + c.late_decay * x.p if decay_after else u), s, c)

    known = {h.name: h for h in (*rule.hypers, RHO)}
    known.setdefault("eps", EPS)
    if decay_after:
        known["weight_decay"] = hyper("weight_decay", WeightDecay, 0.0)
    name = f"braked({rule.name})"
    return replace(rule, name=name, update=update, scalars=scalars, hypers=tuple(known.values()), origin=None)
