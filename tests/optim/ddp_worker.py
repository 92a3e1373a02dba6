"""DistributedDataParallel trainings, one rank of them; every function is a case for `ranks.launch`."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests import ranks
from tests.optim.training import STEPS, batch, build, net, train, weights

HALF = STEPS // 2


def replicated() -> DistributedDataParallel:
    return DistributedDataParallel(net(), find_unused_parameters=True)


def mine() -> slice:
    """This rank's half of a batch."""
    return slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)


def straight(folder: Path, method: str) -> Any:
    """Train to the end without a stop."""
    model = replicated()
    train(model, build(method, model.module), part=mine())
    return weights(model)


def saved(folder: Path, method: str) -> Any:
    """Save in the middle and go on."""
    model = replicated()
    optimizer = build(method, model.module)
    train(model, optimizer, 0, HALF, mine())
    if dist.get_rank() == 0:
        state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, folder / f"checkpoint-{method}.pt")
    train(model, optimizer, HALF, HALF + 1, mine())


killed = ranks.die_together


def resumed(folder: Path, method: str) -> Any:
    """Load what killed ranks saved and train to the end."""
    state = torch.load(folder / f"checkpoint-{method}.pt")
    model = replicated()
    model.module.load_state_dict(state["model"])
    optimizer = build(method, model.module)
    optimizer.load_state_dict(state["optimizer"])
    train(model, optimizer, HALF, STEPS, mine())
    return weights(model)


def infinite(folder: Path, method: str) -> Any:
    """The loss of the second rank is infinite in the step HALF; the scaler skips it on both."""
    model = replicated()
    optimizer = build(method, model.module)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=100)
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = (model(x[mine()], step) - y[mine()]).square().mean()
        spoilt = step == HALF and dist.get_rank() == 1
        scaler.scale(loss * torch.inf if spoilt else loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 1.0
    return weights(model)


if __name__ == "__main__":
    ranks.work(globals())
