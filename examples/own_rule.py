"""Write a rule of your own: normalised momentum, one step of length lr a tensor.

The rule below is all there is to write; eager, batched, compiled and sharded execution, checkpoints and schedulers
come from the engine.
"""

import torch

from polyak.memory.averages import ema
from polyak.optim import Optimizer, Rule, Slot, chain, factory
from polyak.optim.rules import cautious, decay, descend, hypers


@factory
def normalized_momentum():
    """m <- momentum * m + (1 - momentum) * g;  u = m / |m|, the norm taken over one tensor."""

    def scalars(h, t):  # once per step, in Python floats, outside the kernel
        return {"rate": 1 - h["momentum"]}

    def update(x, s, c):  # pure: the flow and the memories in, the new ones out
        m = ema(s.momentum_buffer, x.u, c.rate)
        length = c.sum(m * m).sqrt()  # a sum over the tensor: one more pass over memory
        return x.but(u=m / length.clamp(min=1e-12)), {"momentum_buffer": m}

    return Rule("normalized_momentum", update, scalars, (Slot("momentum_buffer"),), (hypers.momentum(0.9),))


torch.manual_seed(0)
target = torch.randn(20, 10)
for execution in ("eager", "batched"):
    weight = torch.nn.Parameter(torch.zeros(20, 10))
    rules = chain(decay("decoupled"), normalized_momentum(), cautious(), descend())
    optimizer = Optimizer([weight], rules, lr=0.5, momentum=0.9, weight_decay=0.0, execution=execution)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.5 * (1 - step / 200)
        optimizer.zero_grad()
        loss = (weight - target).square().sum()
        loss.backward()
        optimizer.step()
    print(f"{execution}: loss {loss.item():.2e}")
    assert loss.item() < 1e-2
