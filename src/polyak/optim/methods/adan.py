"""Adan: adaptive Nesterov momentum."""

from __future__ import annotations

import math
from typing import Annotated, Any

from torch import Tensor

from polyak.declare import Betas3, Eps, Lr, MaxGradNorm, Paper, Range, WeightDecay
from polyak.memory.averages import debias, ema
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Flow, Places
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.scale_free import clip_norm
from polyak.optim.vocabulary.weight import decay, descend


@factory
def adan() -> Rule:
    """Adan's direction: averages of the gradient, of its difference and of the squared look-ahead (arXiv:2208.06677).

    ``d = g - g_prev; m <- ema(g); v <- ema(d); n <- ema((g + b2 * d)^2); u = (m^ + b2 * v^) / (sqrt(n^) + eps)``
    where ``^`` is bias correction and ``d = 0`` at the first step.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        b1, b2, b3 = (float(b) for b in h["betas"])
        return {
            "rate1": 1 - b1, "rate2": 1 - b2, "rate3": 1 - b3, "ahead": b2, "eps": h["eps"],
            "seen": float(t > 1), "of_m": 1 / debias(b1, t), "of_v": b2 / debias(b2, t),
            "root": 1 / math.sqrt(debias(b3, t)),
        }  # fmt: skip

    def update(x: Flow, s: Any, c: Places) -> tuple[Flow, dict[str, Tensor]]:
        g = x.u
        d = c.seen * (g - s.previous_grad)
        m = ema(s.exp_avg, g, c.rate1)
        v = ema(s.exp_avg_diff, d, c.rate2)
        n = ema(s.exp_avg_sq, (g + c.ahead * d).square(), c.rate3)
        root = n.sqrt() * c.root + c.eps
        u = c.place("exp_avg", c.of_m * m / root) + c.place("exp_avg_diff", c.of_v * v / root)
        return x.but(u=u), {"exp_avg": m, "exp_avg_diff": v, "exp_avg_sq": n, "previous_grad": g}

    slots = (
        Slot("exp_avg", "average of the gradient", "signed"),
        Slot("exp_avg_diff", "average of its difference", "signed"),
        Slot("exp_avg_sq", "average of the squared look-ahead", "positive"),
        Slot("previous_grad", "the last gradient"),
    )
    known = Adan.reads("betas", "eps")
    places = ("exp_avg", "exp_avg_diff")
    return Rule("adan", update, scalars, slots, known, timed=True, places=places, traits=("scale_free",))


class Adan(Method):
    """Adaptive Nesterov momentum (Xie et al., arXiv:2208.06677).

    ::

        d <- g - g_prev (0 at the first step)
        m <- b1 * m + (1 - b1) * g
        v <- b2 * v + (1 - b2) * d
        n <- b3 * n + (1 - b3) * (g + b2 * d)^2
        u <- (m^ + b2 * v^) / (sqrt(n^) + eps)   (^: bias corrected)
        p <- (p - lr * u) / (1 + lr * weight_decay)

    The betas are retention rates; the paper's are one minus these. The paper uses 5 to 10 times Adam's lr, and a
    weight decay of 0.02.

    Differs from the authors' code: counters are per parameter; one clipping norm for all groups, with each group's
    ``eps`` and ``max_grad_norm``; ``p.grad`` is not scaled in place. A gradient that is not finite enters
    three memories: use ``check_finite`` or a GradScaler.
    """

    slug = "adan"
    family = "adaptive"
    paper = Paper("Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models", 2022, "2208.06677")
    vectors = ["adan", "adan-noprox", "adan-clip"]

    lr: Annotated[Lr, Range(3e-4, 1e-1)] = 1e-3
    betas: Betas3 = (0.98, 0.92, 0.99)
    eps: Annotated[Eps, "added to the root"] = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0
    max_grad_norm: MaxGradNorm = 0.0
    no_prox: Annotated[bool, "AdamW's weight decay instead of the proximal one"] = False

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        clip = (clip_norm(),) if options["max_grad_norm"] else ()
        if options["no_prox"]:
            return chain(*clip, decay("decoupled"), cls.direction(options), descend())
        return chain(*clip, cls.direction(options), descend(), decay("proximal"))

    @classmethod
    def direction(cls, options: Options) -> Rule:
        """The rule in the middle of the chain; variants put read-outs behind its memories."""
        return adan()

    def check_options(self, group: Options) -> None:
        """The paper's convention for betas is a likely mistake."""
        if group["betas"][0] < 0.5:
            self.advise(f"betas[0] = {group['betas'][0]} looks like the paper's 1 - beta; here 0.98 is usual")

    def restart(self) -> None:
        """Forget all memories and counters, as the paper's restart condition asks; the next step is a first step."""
        self._forget()
