"""Averages in DistributedDataParallel trainings, one rank of them; every function is a case for `ranks.launch`."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from polyak.teachers import EMA, Warmup
from tests import ranks
from tests.optim.training import STEPS, batch, build, net

HALF = STEPS // 2


def made(when: str) -> tuple[DistributedDataParallel, Any, EMA]:
    model = DistributedDataParallel(net(), find_unused_parameters=True)
    optimizer = build("cadamw", model.module)
    return model, optimizer, EMA(model, Warmup(0.9), start="teacher").attach(optimizer, when)


def train(model: Any, optimizer: Any, first: int, last: int, spoilt: int = -1) -> None:
    mine = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=100, enabled=spoilt >= 0)
    for step in range(first, last):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = (model(x[mine], step) - y[mine]).square().mean()
        scaler.scale(loss * torch.inf if step == spoilt and dist.get_rank() == 1 else loss).backward()
        scaler.step(optimizer)
        scaler.update()


def averages(ema: EMA) -> Any:
    """The averages, which must be those of the other rank."""
    own = {name: value.detach().clone() for name, value in ema.averages[0].items()}
    all_ranks: list[Any] = [None, None]
    dist.all_gather_object(all_ranks, own)
    assert all(torch.equal(all_ranks[0][name], all_ranks[1][name]) for name in own)
    return own, ema.step


def straight(folder: Path, when: str) -> Any:
    """Train to the end without a stop."""
    model, optimizer, ema = made(when)
    train(model, optimizer, 0, STEPS)
    return averages(ema)


def saved(folder: Path, when: str) -> Any:
    """Save in the middle and go on."""
    model, optimizer, ema = made(when)
    train(model, optimizer, 0, HALF)
    if dist.get_rank() == 0:
        states = [x.state_dict() for x in (model.module, optimizer, ema)]
        torch.save(states, folder / f"checkpoint-{when}.pt")
    train(model, optimizer, HALF, HALF + 1)


killed = ranks.die_together


def resumed(folder: Path, when: str) -> Any:
    """Load what killed ranks saved and train to the end."""
    model, optimizer, ema = made(when)
    for x, state in zip((model.module, optimizer, ema), torch.load(folder / f"checkpoint-{when}.pt"), strict=True):
        x.load_state_dict(state)
    train(model, optimizer, HALF, STEPS)
    return averages(ema)


def infinite(folder: Path, when: str) -> Any:
    """The loss of the second rank is infinite in one step; the scaler skips it on both."""
    model, optimizer, ema = made(when)
    train(model, optimizer, 0, STEPS, spoilt=HALF)
    return averages(ema)


if __name__ == "__main__":
    ranks.work(globals())
