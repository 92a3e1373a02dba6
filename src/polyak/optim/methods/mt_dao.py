"""MT-DAO: moments at several time scales, mixed with the gradient, that workers average each with its own period."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import (
    HALF_OPEN_UNIT,
    STATIC,
    Choice,
    Described,
    Eps,
    Lr,
    MaxGradNorm,
    Paper,
    Range,
    WeightDecay,
)
from polyak.memory.averages import debias, ema
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.scale_free import clip_norm
from polyak.optim.vocabulary.weight import decay, descend

Variant = Literal["adopt", "adam", "sgdm"]
Part = Literal["whole", "absorb", "apply"]
"""A step, or its halves: the moments take in the gradient; the weights move by what the moments are by then."""


def listed(value: Any) -> tuple[float, ...]:
    """The numbers of an option that is one number or several."""
    return tuple(value) if isinstance(value, Sequence) else (value,)


def _numbers(value: Any) -> tuple[float, ...] | None:
    given = listed(value)
    return given if given and all(_is_number(v) for v in given) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _are_betas(value: Any) -> bool:
    if not isinstance(value, Sequence) or len(value) != 2 or not _is_number(value[1]):
        return False
    slow = _numbers(value[0])
    return slow is not None and all(float(b) in HALF_OPEN_UNIT for b in (*slow, value[1]))


def _are_weights(value: Any) -> bool:
    given = _numbers(value)
    return given is not None and min(given) >= 0 and sum(given) <= 1 + 1e-12


@factory
def mt_dao(variant: Variant = "adopt", moments: int = 1, bias_correction: bool = False, part: Part = "whole") -> Rule:
    """MT-DAO's direction: a convex mix of the gradient and of moments of several time scales (arXiv:2510.05361).

    ``u_j <- b_j * u_j + (1 - b_j) * h; d = ((1 - sum_j w_j) * h + sum_j w_j * u_j) / scale``, with ``h = g`` and
    ``scale = 1`` (sgdm) or ``sqrt(v) + eps`` (adam); adopt divides first, ``h`` is ``g / max(sqrt(v), eps)`` with the
    ``v`` before the step, held within ``t^(1/4)``.

    Args:
        variant: what the gradient is divided by, and where.
        moments: how many u_j there are.
        bias_correction: divide ``u_j`` and ``v`` by what zero starts have left out (not of adopt).
        part: the whole step; or one half of it, between which the moments may be averaged over workers.
    """
    names = [f"exp_avg_{j + 1}" for j in range(moments)]

    def scalars(h: Options, t: int) -> dict[str, Any]:
        slow, b2 = listed(h["betas"][0]), h["betas"][1]
        first = variant == "adopt" and t == 1
        found: dict[str, Any] = {
            "rate_sq": 1.0 if first else 1 - b2, "eps": h["eps"], "bound": float(t - 1) ** 0.25,
            "acts": 0.0 if first else 1.0, "root": 1.0, "fresh": 1 - math.fsum(listed(h["weight"])),
        }  # fmt: skip
        if bias_correction:
            found["root"] = 1 / math.sqrt(debias(float(b2), t))
        for j, (b, w) in enumerate(zip(slow, listed(h["weight"]), strict=True)):
            found[f"rate_{j}"] = 1 - b
            found[f"weight_{j}"] = w / debias(float(b), t) if bias_correction else w
        return found

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        h = x.u
        if variant == "adopt":
            h = (x.u / s.exp_avg_sq.sqrt().clamp(min=c.eps)).clamp(min=-c.bound, max=c.bound)
        new = {name: getattr(s, name) for name in names}
        if part != "apply":
            new = {name: ema(u, h, getattr(c, f"rate_{j}")) for j, (name, u) in enumerate(new.items())}
        v = None if variant == "sgdm" else s.exp_avg_sq
        if v is not None and part != ("absorb" if variant == "adopt" else "apply"):
            v = new["exp_avg_sq"] = ema(v, x.u * x.u, c.rate_sq)
        if part == "absorb":
            return x.but(u=torch.zeros_like(x.u), decay=0.0), new
        u = c.fresh * h
        for j, name in enumerate(names):
            u = u + getattr(c, f"weight_{j}") * new[name]
        if variant == "adam" and v is not None:
            u = u / (v.sqrt() * c.root + c.eps)
        return x.but(u=u, decay=c.acts), new

    slots = [
        Slot(name, f"average of the {'divided ' * (variant == 'adopt')}gradient, number {j + 1}", "signed")
        for j, name in enumerate(names)
    ]
    if variant != "sgdm":
        slots.append(Slot("exp_avg_sq", "average of the gradient's square", "positive"))
    known = MTDAO.reads("betas", "weight", "eps")
    # workers meet at counts of the optimizer's steps; the half that moves the weights counts them
    return Rule(
        f"mt_dao_{variant}_{part}", update, scalars, tuple(slots), known,
        timed=variant == "adopt" or bias_correction, reads_steps=part != "absorb",
    )  # fmt: skip


class MTDAO(Method):
    """MT-DAO (Iacob et al., arXiv:2510.05361), the step of one worker.

    ::

        g <- the gradient, clipped;  u_j <- b_j * u_j + (1 - b_j) * h;  d <- (1 - sum_j w_j) * h + sum_j w_j * u_j
        adopt:  h <- clamp(g / max(sqrt(v), eps), -t^(1/4), t^(1/4));  p <- p * (1 - lr * weight_decay) - lr * d
                v <- b * v + (1 - b) * g^2  (the first step, t = 0, is v <- g^2 alone)
        adam:   h <- g;  v <- b * v + (1 - b) * g^2;  p <- p * (1 - lr * weight_decay) - lr * d / (sqrt(v) + eps)
        sgdm:   h <- g;  p <- p * (1 - lr * weight_decay) - lr * d

    ``betas`` are ((b_1, ..., b_N), b) and ``weight`` (w_1, ..., w_N); numbers stand for one moment. A slow moment
    outlives a period of local steps, ``b^K`` of it after K, so that it can be averaged over workers:
    :class:`polyak.distributed.MTDAO` does that. Alone it is quasi-hyperbolic Adam, ADOPT or momentum.

    ``t`` is a weight's own count of steps: one whose first gradient comes later starts from its ``g^2`` then. An
    interpretation where the paper's code, which is not public, would say more: no bias correction unless asked for,
    decoupled weight decay, and weights of 0.95.

    Raises:
        ValueError: an argument outside what is allowed, as many weights as there are moments; ``bias_correction``
            with adopt.
    """

    slug = "mt_dao"
    family = "adaptive"
    paper = Paper("MT-DAO: Multi-Timescale Distributed Adaptive Optimizers with Local Updates", 2026, "2510.05361")
    vectors = ["mt-dao-adam-m1", "mt-dao-sgdm-m1"]
    evidence = "independent code"
    one_for_all = ("variant",)

    lr: Annotated[Lr, Range(1e-4, 1e-1)] = 1e-3
    betas: Annotated[
        tuple[Any, float], Described("((b_1, ..., b_N), b), all in [0, 1)", _are_betas), STATIC,
        Choice((((0.99,), 0.9999), ((0.995,), 0.9999), ((0.999,), 0.9999))),
        "retention of the moments, and of the second moment",
    ] = ((0.999,), 0.9999)  # fmt: skip
    weight: Annotated[
        Any, Described("numbers >= 0 that sum to at most 1, one for each moment", _are_weights), STATIC,
        "weights of the moments; the fresh gradient has the rest",
    ] = (0.95,)  # fmt: skip
    eps: Annotated[Eps, "below which the root does not count (adopt), or added to it; 1e-8 is Adam's"] = 1e-6
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0
    max_grad_norm: MaxGradNorm = 1.0
    variant: Annotated[Variant, "what the gradient is divided by, and where"] = "adopt"
    bias_correction: Annotated[
        bool, "divide the moments by what zero starts have left out, where the variant is none of adopt"
    ] = False

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        clip = (clip_norm(add_eps=False),) if options["max_grad_norm"] else ()
        part: Part = options.get("phase", "whole")
        rule = mt_dao(options["variant"], len(listed(options["weight"])), options["bias_correction"], part)
        return chain(*clip, rule, decay("decoupled"), descend())

    def check_options(self, group: Options) -> None:
        """A weight for each moment."""
        slow, weights = listed(group["betas"][0]), listed(group["weight"])
        if len(slow) != len(weights):
            raise ValueError(
                f"{self._owner()}: weight must be {len(slow)} numbers, one for each moment of betas[0] = {slow}, got "
                f"{weights}"
            )
        if group["bias_correction"] and group["variant"] == "adopt":
            raise ValueError(f"{self._owner()}: bias_correction is of 'adam' and 'sgdm'; adopt starts from g^2")

    @contextmanager
    def _in(self, part: Part) -> Any:
        """Within it the chains are those of a half of the step."""
        for group in self.param_groups:
            group["phase"] = part
        try:
            yield
        finally:
            for group in self.param_groups:
                del group["phase"]
