"""Write a rule of your own, and a method: normalised momentum, one step of length lr a tensor.

The rule below is all there is to write; eager, batched, compiled and sharded execution, checkpoints and schedulers
come from the engine. The class gives it a name, a signature, checks and docs.
"""

from typing import Annotated

import torch

from polyak.declare import Lr, Momentum, Paper, Range, WeightDecay
from polyak.memory.averages import ema
from polyak.optim import Method, Optimizer, Rule, Slot, chain, factory
from polyak.optim.rules import cautious, decay, descend


@factory
def normalized_momentum():
    """m <- momentum * m + (1 - momentum) * g;  u = m / |m|, the norm taken over one tensor."""

    def scalars(h, t):  # once per step, in Python floats, outside the kernel
        return {"rate": 1 - h["momentum"]}

    def update(x, s, c):  # pure: the flow and the memories in, the new ones out
        m = ema(s.momentum_buffer, x.u, c.rate)
        length = c.sum(m * m).sqrt()  # a sum over the tensor: one more pass over memory
        return x.but(u=m / length.clamp(min=1e-12)), {"momentum_buffer": m}

    slots = (Slot("momentum_buffer", "average of the gradient", "signed"),)
    return Rule("normalized_momentum", update, scalars, slots, NormalizedMomentum.reads("momentum"))


class NormalizedMomentum(Method):
    """Momentum whose step has length lr, where it agrees in sign with the gradient.

    ::

        m <- momentum * m + (1 - momentum) * g
        u <- m / |m|, masked by [m * g > 0]
        p <- p * (1 - lr * weight_decay) - lr * u
    """

    slug = "normalized"
    paper = Paper("An example", 2026)

    lr: Annotated[Lr, Range(1e-3, 1.0)] = 0.5
    momentum: Momentum = 0.9
    weight_decay: WeightDecay = 0.0

    @classmethod
    def recipe(cls, options):
        return chain(decay("decoupled"), normalized_momentum(), cautious(), descend())


def train(optimizer, weight, target):
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.5 * (1 - step / 200)
        optimizer.zero_grad()
        loss = (weight - target).square().sum()
        loss.backward()
        optimizer.step()
    return loss.item()


torch.manual_seed(0)
target = torch.randn(20, 10)
for execution in ("eager", "batched"):
    weight = torch.nn.Parameter(torch.zeros(20, 10))
    loss = train(NormalizedMomentum([weight], momentum=0.9, execution=execution), weight, target)
    print(f"{execution}: loss {loss:.2e}")
    assert loss < 1e-2

weight = torch.nn.Parameter(torch.zeros(20, 10))  # without a class: any chain is an optimizer
rules = chain(normalized_momentum(), descend())
loss = train(Optimizer([weight], rules, lr=0.5, momentum=0.9, execution="eager"), weight, target)
print(f"a chain: loss {loss:.2e}")
