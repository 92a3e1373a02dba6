"""Rules that write the weight: weight decay and the step."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from polyak.declare import Hyper, Lr, Momentum, WeightDecay, hyper
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, factory

DecayForm = Literal["decoupled", "coupled", "proximal", "fixed", "initial_lr"]


@factory
def descend(lr: float = 1e-3) -> Rule:
    """The step: ``w <- w - lr * u``. ``lr`` is the default learning rate."""

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"lr": h["lr"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(w=x.w - c.lr * x.u), {}

    return Rule("descend", update, scalars, hypers=(hyper("lr", Lr, lr),), writes="step")


@factory
def times_lr() -> Rule:
    """Take the lr into the direction, ``u <- lr * u``, so that a memory behind it keeps the lr of its day (LARS)."""

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"lr": h["lr"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(u=c.lr * x.u), {}

    why = "that direction does not depend on the size of what comes in, so the lr would do nothing"
    return Rule("times_lr", update, scalars, hypers=(hyper("lr", Lr, 1e-3),), pointless_before=(("scale_free", why),))


@factory
def subtract() -> Rule:
    """The step of a direction that has its lr in it, see :func:`times_lr`: ``w <- w - u``."""

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(w=x.w - x.u), {}

    return Rule("subtract", update, writes="step")


@factory
def decay(form: DecayForm = "decoupled", over_momentum: bool = False) -> Rule:
    """Weight decay, in the form and at the place that a method has it.

    Args:
        form: ``"decoupled"`` ``w <- w * (1 - lr * wd)`` (AdamW); ``"fixed"`` ``w <- w * (1 - wd)``;
            ``"initial_lr"`` ``w <- w * (1 - lr / initial_lr * wd)``, decay relative to the lr that the group started
            with; ``"proximal"`` ``w <- w / (1 + lr * wd)``, placed behind the step (Adan); ``"coupled"``
            ``u <- u + wd * p``, L2 regularization, placed before the memories.
        over_momentum: divide by ``1 - momentum`` (SGDP), so that the strength is that of SGD's L2 decay.
    """

    def strength(h: Options) -> Any:
        wd = h["weight_decay"]
        if over_momentum:
            wd = wd / (1 - h["momentum"])
        if form == "initial_lr":
            return wd * h["lr"] / h.get("initial_lr", h["lr"]) if h.get("initial_lr", h["lr"]) else 0.0
        return wd if form in ("coupled", "fixed") else wd * h["lr"]

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"strength": strength(h)}

    def couple(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(u=x.u + c.strength * x.p), {}

    def shrink(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(w=x.w - c.strength * x.w * x.decay), {}

    def divide(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(w=x.w / (1 + c.strength)), {}

    forms = {"coupled": couple, "proximal": divide}
    known: tuple[Hyper, ...] = (hyper("weight_decay", WeightDecay, 0.0),)
    if form not in ("coupled", "fixed"):
        known += (hyper("lr", Lr, 1e-3),)
    if over_momentum:
        known += (hyper("momentum", Momentum, 0.9),)
    writes: Literal["", "decay"] = "" if form == "coupled" else "decay"
    return Rule(f"decay_{form}", forms.get(form, shrink), scalars, hypers=known, writes=writes)
