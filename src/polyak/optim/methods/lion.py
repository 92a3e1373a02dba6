"""Lion: evolved sign momentum."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from polyak.declare import Betas, Choice, Lr, Paper, Range, WeightDecay
from polyak.memory.averages import ema
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Flow, Places
from polyak.optim.engine.rule import Options, Rule, Slot, Trait, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.weight import decay, descend


@factory
def lion(sign: bool = True) -> Rule:
    """Lion's direction: the sign of a second mix of memory and gradient (arXiv:2302.06675).

    ``z = b1 * m + (1 - b1) * g; u = sign(z); m <- b2 * m + (1 - b2) * g``

    Args:
        sign: off reads out ``z`` itself, for what Lion-K puts in the place of the sign.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        b1, b2 = h["betas"]
        return {"rate1": 1 - b1, "rate2": 1 - b2}

    def update(x: Flow, s: Any, c: Places) -> tuple[Flow, dict[str, Tensor]]:
        z = c.place("exp_avg", ema(s.exp_avg, x.u, c.rate1))
        return x.but(u=torch.sign(z) if sign else z), {"exp_avg": ema(s.exp_avg, x.u, c.rate2)}

    slots = (Slot("exp_avg", "average of the gradient", "signed"),)
    known = Lion.reads("betas")
    traits: tuple[Trait, ...] = ("scale_free", "sign_memory", "signs") if sign else ()
    refused = ("decay_coupled", "sr_ste")
    return Rule("lion", update, scalars, slots, known, refuses=refused, places=("exp_avg",), traits=traits)


class Lion(Method):
    """Lion (Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675).

    ::

        p <- p * (1 - lr * weight_decay) - lr * sign(b1 * m + (1 - b1) * g)
        m <- b2 * m + (1 - b2) * g

    Use an lr 3 to 10 times smaller than AdamW's and a weight decay as many times larger. Decay is never folded into
    the gradient: that would change the sign. The theory wants ``b1 <= b2``; anything else is warned of.

    Differs from the authors' code: with half-precision weights the memory is float32, since an average in bfloat16
    stalls.
    """

    slug = "lion"
    family = "sign"
    paper = Paper("Symbolic Discovery of Optimization Algorithms", 2023, "2302.06675")
    vectors = ["lion", "lion-decoupled"]

    lr: Annotated[Lr, Range(1e-5, 1e-2)] = 1e-4
    betas: Annotated[Betas, Choice(((0.9, 0.99), (0.95, 0.98)))] = (0.9, 0.99)
    weight_decay: Annotated[WeightDecay, Range(1e-3, 1.0)] = 0.0
    decay_relative_to_initial_lr: Annotated[bool, "decay by lr / initial_lr * weight_decay, as lucidrains does"] = False

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        form = decay("initial_lr" if options["decay_relative_to_initial_lr"] else "decoupled")
        return chain(form, lion(), descend())

    def check_options(self, group: Options) -> None:
        """The theory of Lion wants b1 <= b2."""
        if group["betas"][0] > group["betas"][1]:
            self.advise("betas[0] > betas[1] is outside Lion's theory")
