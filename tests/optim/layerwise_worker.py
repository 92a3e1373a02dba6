"""Layer-wise methods under DistributedDataParallel and FSDP2, one rank; every function is a case for `ranks.launch`."""

from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import polyak.optim
from tests import ranks
from tests.optim.layerwise.nets import make, net, train, weights


def replicated(folder: Path, name: str) -> Any:
    """Training on halves of every batch."""
    model = DistributedDataParallel(net())
    rank = dist.get_rank()
    train(model, make(name, model), 0, 5, slice(4 * rank, 4 * rank + 4))
    return weights(model)


def sharded(folder: Path, name: str) -> Any:
    """What a sharded model is told."""
    model = net()
    fully_shard(model)
    try:
        polyak.optim.get(name)(model)
    except ValueError as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    ranks.work(globals())
