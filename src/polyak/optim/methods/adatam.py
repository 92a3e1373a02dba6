"""Adaptive torque-aware momentum."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from torch import Tensor

from polyak.declare import Betas, Eps, Lr, Paper, Range, WeightDecay
from polyak.memory.averages import ema
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.adaptive import corrections
from polyak.optim.vocabulary.torque import COSINE, DecayRate, Scope, torque
from polyak.optim.vocabulary.weight import DecayForm, decay, descend


@factory
def adatam(dampen: bool = False, bias_correction: bool = False, everywhere: bool = False) -> Rule:
    """AdaTAM's direction: torque-aware momentum over Adam's root, which sees the undamped gradient (arXiv:2412.18790).

    Args:
        dampen: weigh the gradient by ``1 - b1`` as Adam does.
        bias_correction: Adam's corrections.
        everywhere: one cosine over all tensors instead of one a tensor.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        b1, b2 = h["betas"]
        gain = 1 - b1 if dampen else 1.0
        fixed = corrections(b1, b2, t, "after", bias_correction)
        rate = 1 - h["decay_rate"]
        half, offset = 0.5 * gain, (0.5 + h["eps"]) * gain
        return {"beta1": b1, "rate2": 1 - b2, "rate": rate, "half": half, "offset": offset, "eps": h["eps"], **fixed}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        cosine = torque(s.exp_avg, x.u, s.cosine_avg, c.rate, c, everywhere)
        damping = c.offset + c.half * cosine
        c.note("cosine", cosine)
        c.note("damping", damping)
        m = c.beta1 * s.exp_avg + damping * x.u
        v = ema(s.exp_avg_sq, x.u * x.u, c.rate2)
        u = c.step * m / (v.sqrt() * c.root + c.eps)
        return x.but(u=u), {"exp_avg": m, "exp_avg_sq": v, "cosine_avg": cosine}

    slots = (
        Slot("exp_avg", "the damped momentum", "signed"),
        Slot("exp_avg_sq", "average of the gradient's square", "positive"),
        COSINE,
    )
    known = AdaTAM.reads("betas", "decay_rate", "eps")
    return Rule("adatam", update, scalars, slots, known, timed=bias_correction, traits=("scale_free",))


class AdaTAM(Method):
    """Adaptive torque-aware momentum (arXiv:2412.18790), with L2 regularization.

    ::

        S <- <m, g> / (|m| |g|); s <- decay_rate * s + (1 - decay_rate) * S; d <- (1 + s) / 2
        m <- b1 * m + (eps + d) * g
        v <- b2 * v + (1 - b2) * g^2
        p <- p - lr * m / (sqrt(v) + eps)

    Without ``dampen`` there is no ``1 - b1``: m is about 5 times Adam's, so the lr should be as much smaller.
    """

    slug = "adatam"
    family = "adaptive"
    paper = Paper("Torque-Aware Momentum", 2024, "2412.18790")
    vectors = ["adatam-card"]
    evidence = "own transcription"
    decay_form: ClassVar[DecayForm] = "coupled"

    lr: Annotated[Lr, Range(1e-5, 1e-2)] = 1e-3
    betas: Betas = (0.9, 0.999)
    decay_rate: DecayRate = 0.9
    eps: Annotated[Eps, "added to damping and root"] = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-6, 1e-2), "added to the gradient before the cosine"] = 0.0
    dampen: Annotated[bool, "weigh the gradient by 1 - betas[0] too"] = False
    bias_correction: Annotated[bool, "Adam's bias corrections"] = False
    scope: Scope = "tensor"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        direction = adatam(options["dampen"], options["bias_correction"], options["scope"] == "global")
        return chain(decay(cls.decay_form), direction, descend())
