"""The trainings of tests.optim.ecosystem on one rank of several; every function is a case for `ranks.launch`."""

import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from polyak.optim.drivers import DGD
from tests import ranks
from tests.optim.ecosystem import Run, net, weights
from tests.optim.moves import random


def parts() -> list[slice]:
    """This rank's half of a batch, in two parts."""
    first = 4 * dist.get_rank()
    return [slice(first, first + 2), slice(first + 2, first + 4)]


def report(kind: str, name: str, execution: str, model: nn.Module) -> Any:
    """The weights after the training, or what was said against it."""
    try:
        run = Run(name, model, execution)
        run.train(parts())
    except Exception as error:
        return f"{error}\n{traceback.format_exc()}"
    finally:
        print(kind, name, execution)
    return weights(model)


def fsdp(folder: Path, name: str, execution: str) -> Any:
    """Sharded; the mixing layer by itself."""
    model = net(name)
    fully_shard(model.mix)
    fully_shard(model)
    return report("fsdp", name, execution, model)


def ddp(folder: Path, name: str, execution: str) -> Any:
    """Replicated."""
    return report("ddp", name, execution, DistributedDataParallel(net(name)))


def uneven(folder: Path, first: str) -> Any:
    """Delta gradient descent on so many rows here, and the others there, of which the mean over ranks is taken."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(4, 3).double())
    optimizer = DGD(model, lr=0.3)
    mine = slice(0, int(first)) if dist.get_rank() == 0 else slice(int(first), None)
    for step in range(3):
        x, y = random(step, (5, 4), (5, 3))
        optimizer.zero_grad()
        (model(x[mine]) - y[mine]).square().mean().backward()
        optimizer.step()
    return weights(model)


if __name__ == "__main__":
    ranks.work(globals())
