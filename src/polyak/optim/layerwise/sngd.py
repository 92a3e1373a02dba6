"""SNGD: structured natural gradient in local coordinates, SINGD's predecessor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from torch import Tensor, nn

from polyak.declare import STATIC, Paper, WeightDecay, hyper
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.layers import Layer
from polyak.optim.engine.rule import Options, Rule, factory
from polyak.optim.engine.taps import Seen
from polyak.optim.layerwise.base import COUNT
from polyak.optim.layerwise.singd import SINGD

LATE = 20
"""Refreshes before weight decay begins."""
SCHEDULE = ((100, 2e-4), (499, 2e-3))
"""Learning rates of the factors up to these steps."""


@factory
def late_decay() -> Rule:
    """Coupled weight decay from step ``20 * T`` on, counted from 0."""

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"strength": h["weight_decay"] if t - 1 >= LATE * h["T"] else 0.0}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(u=x.u + c.strength * x.p), {}

    known = (hyper("weight_decay", WeightDecay, 0.0), *SNGD.reads("T"))
    return Rule("late_decay", update, scalars, hypers=known, timed=True)


class SNGD(SINGD):
    """Structured natural-gradient descent (Lin et al., arXiv:2302.09738): dense factors in local coordinates.

    ::

        every T steps, from a layer's inputs a and its samples' output gradients g, at S positions of a sample:
            H_K <- K^T mean(a a^T) K / S;  H_C <- S * C^T N sum(g g^T) C   (S is 1 but for convolutions)
            m_K <- alpha1 * m_K + 1/2 (tr(H_C)/d * H_K + damping * tr(C^T C)/d * K^T K - I)
            m_C <- alpha1 * m_C + 1/2 (tr(H_K)/p * H_C + damping * tr(K^T K)/p * C^T C - I)
            K <- K - r * K m_K;  C <- C - r * C m_C
        D <- C C^T G K K^T + weight_decay * W, G = [dW | db]
        b <- momentum * b + D;  W <- W - lr * b
        (other weights: the same momentum along their gradient)

    r is 2e-4 up to step 100, 2e-3 before step 500, and then ``lr_cov``; weight decay begins at step ``20 * T``. These
    constants are the authors'. :class:`SINGD` is what they went on to.

    Raises:
        ValueError: an argument outside what is allowed; a layer that is shared, sharded (FSDP2) or of a kind that is
            not understood, which is named.
        TypeError: no model is given.
    """

    slug = "sngd"
    family = "second order"
    paper = Paper(
        "Simplifying Momentum-based Positive-definite Submanifold Optimization with Applications to Deep Learning",
        2023, "2302.09738",
    )  # fmt: skip
    vectors = ["sngd-local-mlp", "sngd-local-mlp-slow", "sngd-local-conv"]

    weight_decay = 1e-2
    structures: Annotated[Sequence[str], (("dense", "dense"),), STATIC, "dense alone"] = ("dense", "dense")

    @classmethod
    def decayed(cls) -> Rule:
        """Weight decay that begins late."""
        return late_decay()

    def means(self, layer: Layer, seen: Seen) -> tuple[Tensor, Tensor]:
        """SINGD's, a convolution's by its positions."""
        entered, left = super().means(layer, seen)
        positions = seen.positions if isinstance(layer.module, nn.Conv2d) else 1
        return entered / positions, left * positions

    def factor_lr(self, layer: Layer) -> float:
        """By the step: small at the start."""
        count = int(self.state[layer.weight][COUNT])
        return next((rate for last, rate in SCHEDULE if count <= last), super().factor_lr(layer))
