"""Ano: the sign of momentum with the size of the present gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Annotated, Any, Literal

from torch import Tensor

from polyak.declare import HALF_OPEN_UNIT, Described, Eps, Interval, hyper
from polyak.memory.averages import debias, ema
from polyak.memory.geometry import sign_times_magnitude
from polyak.optim.engine.context import Flow, Places
from polyak.optim.engine.rule import Options, Rule, Slot, Trait, factory

Retention = Literal["betas", "log", "log_shifted", "sqrt", "all"]

RATES: dict[str, Callable[[int], float]] = {
    "log": lambda t: 1 / math.log(max(2, t)),
    "log_shifted": lambda t: 1 / math.log(t + 2),
    "sqrt": lambda t: 1 / math.sqrt(t),
    "all": lambda t: 1 / t,
}
"""``1 - b1(t)``: the weight of the gradient of step ``t`` in the average."""

ROOT = Interval(0.5, 1.0, high_open=True)
"""With a smaller b2 the second moment may become negative."""


def _is_pair(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(isinstance(v, Real) for v in value):
        return False
    return value[0] in HALF_OPEN_UNIT and value[1] in ROOT


Betas = Annotated[
    tuple[float, float],
    Described(f"two numbers, the first in {HALF_OPEN_UNIT}, the second in {ROOT}", _is_pair),
    "retention rates of the average and of the second moment",
]
Beta2 = Annotated[float, ROOT, "retention rate of the second moment"]
SecondMoment = Literal["decayed", "yogi"]
YogiForm = Annotated[SecondMoment, "whether the second moment decays, or is Yogi's own, which does not"]
EpsInside = Annotated[Eps, "added to the second moment, inside the root"]


@factory
def ano(retention: Retention = "betas", correct_bias: bool = True, second_moment: SecondMoment = "decayed") -> Rule:
    """Ano's direction: ``sign(m) * |g| / sqrt(v^ + eps)`` (arXiv:2508.18258).

    ``v <- b2 * v + (1 - b2) * sign(g^2 - v) * g^2`` is Yogi's second moment with a decay.

    Args:
        retention: ``b1``: the first of ``betas``, which is constant, or ``1 - RATES[retention](t)``; ``b2`` is then
            the hyperparameter ``beta2``.
        correct_bias: divide ``v`` by ``1 - b2^t``.
        second_moment: ``"yogi"`` leaves out the decay: ``v <- v + (1 - b2) * sign(g^2 - v) * g^2``.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        rate1, b2 = (1 - h["betas"][0], h["betas"][1]) if retention == "betas" else (RATES[retention](t), h["beta2"])
        root = 1 / debias(float(b2), t) if correct_bias else 1.0
        return {"rate1": rate1, "rate2": 1 - b2, "root": root, "eps": h["eps"]}

    def update(x: Flow, s: Any, c: Places) -> tuple[Flow, dict[str, Tensor]]:
        square = x.u * x.u
        m = ema(s.exp_avg, x.u, c.rate1)
        toward = sign_times_magnitude(square - s.exp_avg_sq, square)
        v = s.exp_avg_sq + c.rate2 * toward if second_moment == "yogi" else ema(s.exp_avg_sq, toward, c.rate2)
        u = sign_times_magnitude(c.place("exp_avg", m), x.u) / (v * c.root + c.eps).sqrt()
        return x.but(u=u), {"exp_avg": m, "exp_avg_sq": v}

    slots = (
        Slot("exp_avg", "average of the gradient, of which the sign is read", "signed"),
        Slot("exp_avg_sq", "Yogi's average of its square", "positive"),
    )
    rates = hyper("betas", Betas, (0.92, 0.99)) if retention == "betas" else hyper("beta2", Beta2, 0.999)
    known = (rates, hyper("eps", EpsInside, 1e-8))
    traits: tuple[Trait, ...] = ("scale_free", "sign_memory")
    return Rule("ano", update, scalars, slots, known, timed=True, places=("exp_avg",), traits=traits)
