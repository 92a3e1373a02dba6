"""The trainings of tests.optim.ecosystem on one rank of several; every function is a case for `ranks.launch`."""

import traceback
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests import ranks
from tests.optim.ecosystem import Run, net, weights


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


if __name__ == "__main__":
    ranks.work(globals())
