"""AdaBelief: the second moment is the deviation from the momentum."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import Betas, Choice, Eps, Lr, Paper, Range, WeightDecay
from polyak.memory.averages import debias, ema
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Flow, Places
from polyak.optim.engine.rule import Options, Rule, Slot, Trait, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.weight import decay, descend


def rectification(beta2: float, t: int) -> float | None:
    """RAdam's variance rectification times ``sqrt(1 - b2^t)`` (arXiv:1908.03265); None while it is undefined."""
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / debias(beta2, t)
    if rho < 5 or rho_inf <= 4:
        return None
    ratio = (rho - 4) / (rho_inf - 4) * (rho - 2) / rho * rho_inf / (rho_inf - 2)
    return math.sqrt(debias(beta2, t) * ratio)


@factory
def adabelief(
    rectify: bool = True, amsgrad: bool = False, degenerated_to_sgd: bool = True, accumulate_eps: bool = True
) -> Rule:
    """AdaBelief's direction: ``m / sqrt(s)``, ``s`` an average of ``(g - m)^2`` (arXiv:2010.07468).

    Args:
        rectify: RAdam's rule; while it is undefined the direction is ``m`` (``degenerated_to_sgd``) or 0.
        amsgrad: divide by the largest ``s`` so far; without effect under ``rectify``, as in the authors' code.
        accumulate_eps: eps stays in ``s`` at every step, as in paper and code; off adds it only to the root.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        b1, b2 = (float(b) for b in h["betas"])
        c1 = debias(b1, t)
        values = {"rate1": 1 - b1, "rate2": 1 - b2, "eps": h["eps"]}
        if not rectify:
            return values | {"adaptive": 1 / c1, "plain": 0.0, "root": 1 / math.sqrt(debias(b2, t))}
        r = rectification(b2, t)
        plain = 1 / c1 if r is None and degenerated_to_sgd else 0.0
        return values | {"adaptive": 0.0 if r is None else r / c1, "plain": plain, "root": 1.0}

    def update(x: Flow, s: Any, c: Places) -> tuple[Flow, dict[str, Tensor]]:
        m = ema(s.exp_avg, x.u, c.rate1)
        var = ema(s.exp_avg_var, (x.u - m).square(), c.rate2)
        if accumulate_eps:
            var = var + c.eps
        new = {"exp_avg": m, "exp_avg_var": var}
        if amsgrad:
            new["max_exp_avg_var"] = torch.maximum(s.max_exp_avg_var, var)
        belief = new["max_exp_avg_var"] if amsgrad and not rectify else var
        u = c.adaptive * m / (belief.sqrt() * c.root + c.eps)
        u = torch.where(c.adaptive > 0, u, c.plain * m) if rectify else u
        return x.but(u=c.place("exp_avg", u)), new

    slots: tuple[Slot, ...] = (
        Slot("exp_avg", "average of the gradient", "signed"),
        Slot("exp_avg_var", "average of the gradient's squared deviation from it", "positive"),
    )
    slots += (Slot("max_exp_avg_var", "the largest such average so far", "positive"),) if amsgrad else ()
    known = AdaBelief.reads("betas", "eps")
    traits: tuple[Trait, ...] = () if rectify and degenerated_to_sgd else ("scale_free",)
    return Rule("adabelief", update, scalars, slots, known, timed=True, places=("exp_avg",), traits=traits)


class AdaBelief(Method):
    """AdaBelief (Zhuang et al., arXiv:2010.07468): large steps where the momentum predicts the gradient well.

    ::

        m <- b1 * m + (1 - b1) * g
        s <- b2 * s + (1 - b2) * (g - m)^2 + eps
        p <- p * (1 - lr * weight_decay) - lr * m^ / (sqrt(s^) + eps)   (rectified as RAdam by default)

    Defaults are those of the authors' package 0.2; the paper's results use ``rectify=False``. eps is about the square
    of Adam's: 1e-16 where Adam is better than SGD, 1e-8 where SGD is. Do not clamp gradients elementwise (``g - m``
    becomes 0); clipping by norm is fine. Settings in which the method degenerates are warned of.

    Differs from the authors' code: coupled decay does not change ``p.grad``; states are float32 for every
    half-precision weight (1e-16 is 0 in float16); nothing is printed.
    """

    slug = "adabelief"
    family = "adaptive"
    paper = Paper("AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients", 2020, "2010.07468")
    vectors = ["adabelief", "adabelief-rectify", "adabelief-coupled", "adabelief-amsgrad"]

    lr: Annotated[Lr, Range(1e-4, 3e-2)] = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Annotated[Eps, Choice((1e-16, 1e-12, 1e-8)), "added to s at every step and to the root"] = 1e-16
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0
    decay_form: Annotated[Literal["decoupled", "coupled", "fixed"], "form of weight decay; fixed: without lr"] = (
        "decoupled"
    )
    amsgrad: Annotated[bool, "divide by the largest s so far; no effect on rectified steps"] = False
    rectify: Annotated[bool, "RAdam's variance rectification"] = True
    degenerated_to_sgd: Annotated[bool, "step along m while the rectification is undefined, or stand still"] = True
    accumulate_eps: Annotated[bool, "keep eps in s; off (not the authors') adds it to the root only"] = True

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        names = ("rectify", "amsgrad", "degenerated_to_sgd", "accumulate_eps")
        chosen: dict[str, Any] = {name: options[name] for name in names}
        return chain(decay(options["decay_form"]), adabelief(**chosen), descend())

    def check_options(self, group: Options) -> None:
        """Warn about settings in which the method degenerates."""
        if group["rectify"] and group["betas"][1] <= 0.6:
            self.advise("with betas[1] <= 0.6 no step is ever rectified")
        if group["eps"] == 0:
            self.advise("eps = 0 divides by zero once g equals its average")

    def reset(self) -> None:
        """Zero all memories and counters."""
        self._forget()
