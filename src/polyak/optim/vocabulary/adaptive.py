"""Adam: an average of the gradient over the root of an average of its square."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import Betas, Eps, hyper
from polyak.memory.averages import debias, ema
from polyak.optim.engine.context import Flow, Places
from polyak.optim.engine.rule import Options, Rule, Slot, factory

EpsForm = Literal["after", "before"]
EpsPlace = Annotated[EpsForm, "eps after or before the bias correction of the root"]
Amsgrad = Annotated[bool, "divide by the largest second moment so far (arXiv:1904.09237)"]
CorrectBias = Annotated[bool, "Adam's bias corrections"]


def corrections(beta1: Any, beta2: Any, t: int, eps_form: EpsForm, correct: bool = True) -> dict[str, Any]:
    """Adam's bias corrections: ``u = step * m / (sqrt(v) * root + eps)``.

    ``"after"`` adds eps to the corrected root (torch); ``"before"`` to the raw one (Hugging Face), which makes eps
    smaller by ``sqrt(1 - beta2 ** t)``.
    """
    if not correct:
        return {"step": 1.0, "root": 1.0}
    c1, c2 = debias(float(beta1), t), debias(float(beta2), t)
    if eps_form == "after":
        return {"step": 1 / c1, "root": 1 / math.sqrt(c2)}
    return {"step": math.sqrt(c2) / c1, "root": 1.0}


@factory
def adam(amsgrad: bool = False, eps_form: EpsForm = "after", correct_bias: bool = True, nesterov: bool = False) -> Rule:
    """Adam's direction: ``m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)`` (arXiv:1412.6980).

    Args:
        amsgrad: divide by the largest ``v`` so far (arXiv:1904.09237).
        eps_form: where eps is added, see :func:`corrections`.
        correct_bias: off leaves both corrections out.
        nesterov: read out ``b1 * m + (1 - b1) * u`` instead of ``m`` (AdamP).
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        b1, b2 = h["betas"]
        fixed = corrections(b1, b2, t, eps_form, correct_bias)
        return {"beta1": b1, "rate1": 1 - b1, "rate2": 1 - b2, "eps": h["eps"], **fixed}

    def update(x: Flow, s: Any, c: Places) -> tuple[Flow, dict[str, Tensor]]:
        m = ema(s.exp_avg, x.u, c.rate1)
        v = ema(s.exp_avg_sq, x.u * x.u, c.rate2)
        new = {"exp_avg": m, "exp_avg_sq": v}
        if amsgrad:
            v = new["max_exp_avg_sq"] = torch.maximum(s.max_exp_avg_sq, v)
        ahead = c.beta1 * m + c.rate1 * x.u if nesterov else m
        ahead = c.place("exp_avg", ahead)
        return x.but(u=c.step * ahead / (v.sqrt() * c.root + c.eps), before=s.exp_avg), new

    slots: tuple[Slot, ...] = (
        Slot("exp_avg", "average of the gradient", "signed"),
        Slot("exp_avg_sq", "average of its square", "positive"),
    )
    slots += (Slot("max_exp_avg_sq", "the largest average of the square so far", "positive"),) if amsgrad else ()
    known = (hyper("betas", Betas, (0.9, 0.999)), hyper("eps", Eps, 1e-8))
    return Rule(
        "adam", update, scalars, slots, known, timed=True, places=("exp_avg",), traits=("scale_free", "hands_on")
    )
