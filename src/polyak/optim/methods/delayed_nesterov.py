"""Delayed Nesterov: momentum at a server that hears its workers one at a time."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from polyak.declare import COUNT, UNIT, Choice, Lr, Momentum, Paper, Range, WeightDecay
from polyak.memory.averages import heavy_ball as roll
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.weight import decay, descend


@factory
def delayed_nesterov() -> Rule:
    """Delayed Nesterov's direction (arXiv:2401.09135, Algorithm 3), of one arrival a step.

    ``D <- D + g``; at every ``buffer_size``-th step ``m <- momentum * m + D / N; D <- 0``; reads out ``g / N`` plus a
    share of ``momentum * m``, which is ``momentum_activation`` before the end of a period and the rest of 1 at it.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        n, b, c = h["buffer_size"], h["momentum"], h["momentum_activation"]
        if t % n:
            return {"keep": 1.0, "gain": 0.0, "left": 1.0, "ahead": c * b, "share": 1 / n}
        return {"keep": b, "gain": 1 / n, "left": 0.0, "ahead": (1 - c * n + c) * b, "share": 1 / n}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        arrived = s.arrived + x.u
        m = roll(s.momentum_buffer, arrived, c.keep, c.gain)
        return x.but(u=c.ahead * m + c.share * x.u), {"momentum_buffer": m, "arrived": c.left * arrived}

    slots = (
        Slot("momentum_buffer", "the heavy ball, refreshed once a period", "signed"),
        Slot("arrived", "the sum of this period's pseudo-gradients", "signed"),
    )
    known = DelayedNesterov.reads("momentum", "momentum_activation", "buffer_size")
    return Rule("delayed_nesterov", update, scalars, slots, known, timed=True)


class DelayedNesterov(Method):
    """Delayed Nesterov (Liu et al., arXiv:2401.09135, Algorithm 3): an outer optimizer for asynchronous workers.

    ::

        on arrival of g, the t-th, t = 1, 2, ...:  D <- D + g
        t divisible by N:  m <- b * m + D / N;  p <- p - lr * ((1 - c * N + c) * b * m + g / N);  D <- 0
        otherwise:         p <- p - lr * (c * b * m + g / N)
        (N = buffer_size, b = momentum, c = momentum_activation; g is that of a worker plus weight_decay * p)

    One step is one arrival: ``p.grad`` is what one worker made of its local steps, the weights that it started from
    less those that it ended with. Every arrival moves the weights at once; the momentum takes in the mean of a period
    of N, the number of workers, and enters the weights once a period, or in equal parts with ``c = 1 / N``. The parts
    of a period sum to 1. Where all N of a period come from the same weights, the period is one Nesterov step with
    their mean; with N = 1 it is ``torch.optim.SGD(nesterov=True)``. Nesterov at each arrival would accelerate one
    direction N times, and diverges where this converges.

    All memories lie in ``state``, so that a period may be open when a run is saved. Follows the paper; the independent
    code that the recorded trajectories come from agrees.

    Raises:
        ValueError: an argument outside what is allowed, ``momentum_activation`` above ``1 / buffer_size``.
    """

    slug = "delayed_nesterov"
    family = "momentum"
    paper = Paper("Asynchronous Local-SGD Training for Language Modeling", 2024, "2401.09135")
    vectors = ["delayed-nesterov-c0", "delayed-nesterov-cmax"]
    evidence = "independent code"

    lr: Annotated[Lr, Range(1e-2, 1.0)] = 0.7
    momentum: Annotated[Momentum, Choice((0.8, 0.9, 0.95))] = 0.9
    momentum_activation: Annotated[
        float, UNIT, "weight of the momentum at the arrivals before a period's last, c; at most 1 / buffer_size"
    ] = 0.0
    buffer_size: Annotated[int, COUNT, "arrivals of a period, N; the number of workers"] = 4
    weight_decay: Annotated[WeightDecay, "L2 regularization, as in SGD"] = 0.0

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(decay("coupled"), delayed_nesterov(), descend())

    def check_options(self, group: Options) -> None:
        """The parts of the momentum in a period are shares of 1."""
        c, n = group["momentum_activation"], group["buffer_size"]
        if c > 1 / n:
            raise ValueError(
                f"{self._owner()}: momentum_activation must be at most 1 / buffer_size = {1 / n:.6g}, got {c}; the "
                "momentum weight of a period would exceed 1"
            )
