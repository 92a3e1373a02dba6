"""Random scaling: one random number a step, the same for all tensors, by which the whole step is multiplied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Annotated, Any, Literal

from torch import Tensor

from polyak.declare import POSITIVE, Described, Interval, hyper
from polyak.memory.draws import uniform_at
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.member import STEPS
from polyak.optim.engine.rule import Options, Rule, factory


def _is_listed(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, (list, tuple)) and all(isinstance(v, Real) and math.isfinite(v) for v in value)


Distribution = Annotated[
    Literal["exponential", "uniform", "none"], "of the scale: exponential of mean 1, uniform in (0, 2), or 1 always"
]
MaxScale = Annotated[float | None, POSITIVE, "largest scale; None: as drawn"]
Scales = Annotated[
    Sequence[float] | None, Described("None or a list of numbers", _is_listed), "the scales of all steps, not drawn"
]
Seed = Annotated[int, Interval(0, 2**63), "of what is drawn; the same on every rank"]


def scale_at(h: Options, step: int) -> float:
    """The scale of a step of the optimizer, counted from 0.

    Raises:
        ValueError: ``scales`` are given, and not as many.
    """
    if h["scales"] is not None:
        if step >= len(h["scales"]):
            raise ValueError(f"scales has {len(h['scales'])} numbers, and this is step {step + 1}")
        drawn = float(h["scales"][step])
    elif h["distribution"] == "none":
        drawn = 1.0
    else:
        u = uniform_at(h["seed"], step)
        drawn = 2 * u if h["distribution"] == "uniform" else -math.log1p(-u)
    return drawn if h["max_scale"] is None else min(drawn, h["max_scale"])


@factory
def random_scaling() -> Rule:
    """Multiply the step of any chain that it ends by a random number (arXiv:2405.09742): ``w <- p + s * (w - p)``.

    ``s`` is one number a step for all tensors, with mean 1, and decoupled weight decay is scaled with the rest. It
    follows from ``seed`` and the number of steps of the optimizer, so that it is equal on all ranks whichever tensors
    have a gradient there, and after a resume what it would have been. With ``s`` exponential the mean of
    ``F(p + s d) - F(p)`` is exactly that of ``<F'(p + s d), d>``, smooth or not.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"scale": scale_at(h, h.get(STEPS, 0))}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        c.note("scale", c.scale)
        return x.but(w=x.p + c.scale * (x.w - x.p)), {}

    known = (
        hyper("distribution", Distribution, "exponential"), hyper("max_scale", MaxScale, None),
        hyper("seed", Seed, 0), hyper("scales", Scales, None),
    )  # fmt: skip
    return Rule("random_scaling", update, scalars, hypers=known, writes="step", reads_steps=True)
