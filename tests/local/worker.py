"""What one of two ranks does; every function is a case for `ranks.launch`."""

import os
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from polyak.local import (
    DGL,
    MAN,
    AugLocal,
    BlockPipeline,
    Greedy,
    InfoPro,
    LocalNetwork,
    NeighbourError,
    cifar_resnet,
    local_backward,
)
from tests.local import kinds
from tests.optim import ranks

AUXILIARIES = {
    "greedy": Greedy(),
    "dgl": DGL(4),
    "auglocal": AugLocal(1),
    "infopro": InfoPro(feature_dim=6),
    "man": MAN(DGL(4), momentum=0.7),
    "man-infopro": MAN(InfoPro(feature_dim=6), momentum=0.7, variant="scale"),
    "paper": MAN(DGL(4), variant="paper"),
}
make_optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
LOST = 3  # exit code of a rank that noticed that its neighbour has gone


def network(name: str) -> LocalNetwork:
    torch.manual_seed(1)
    model = cifar_resnet(20).double()
    return LocalNetwork(model, 4, AUXILIARIES[name], example=torch.rand(2, 3, 8, 8).double())


def batches(count: int = 5):
    generator = torch.Generator().manual_seed(5)
    for i in range(count):
        n = 3 if i == count - 1 else 6
        yield torch.rand(n, 3, 8, 8, generator=generator).double(), torch.randint(0, 10, (n,), generator=generator)


def sequential(name: str) -> dict[str, Any]:
    net = network(name)
    optimizer = make_optimizer(list(net.trainable_parameters()))
    for x, y in batches():
        optimizer.zero_grad()
        local_backward(net, x, y)
        optimizer.step()
    return state(net)


def state(net: torch.nn.Module) -> dict[str, Any]:
    return {k: v for k, v in net.state_dict().items() if isinstance(v, torch.Tensor)}


def pipeline(folder: Path, name: str, split: str = "") -> Any:
    net = network(name)
    if dist.get_rank() == 1:
        with torch.no_grad():
            for p in net.parameters():
                p.zero_()  # rank 0's weights count
    pipe = BlockPipeline(net, make_optimizer, split=[int(n) for n in split] or None)
    losses = pipe.run(batches() if dist.get_rank() == 0 else None)
    assert [len(row) for row in losses] == [len(pipe.mine)] * 5
    pipe.gather()
    if dist.get_rank() == 1:
        torch.save(state(net), folder / f"rank1-{name}{split}.pt")
    return state(net)


def refused(folder: Path) -> Any:
    net = network("man")
    messages = []
    for act in (
        lambda: BlockPipeline(net, make_optimizer, split=[4, 0]),
        lambda: BlockPipeline(net, make_optimizer, split=[1, 1]),
        lambda: BlockPipeline(network("paper"), make_optimizer),
        lambda: BlockPipeline(net, make_optimizer).run(None if dist.get_rank() == 0 else batches()),
    ):
        try:
            act()
        except ValueError as error:
            messages.append(str(error))
    return messages


def dies(folder: Path, who: str) -> Any:
    """A rank is killed in the third iteration; the other must notice."""
    pipe = BlockPipeline(network("man"), make_optimizer, timeout=timedelta(seconds=20))
    if dist.get_rank() == int(who):
        count = iter(range(10))
        pipe.optimizer.register_step_pre_hook(lambda *_: ranks.die() if next(count) == 2 else None)
    _notice(pipe)


def raises(folder: Path, who: str) -> Any:
    """A rank fails with an error of its own."""
    pipe = BlockPipeline(network("man"), make_optimizer, timeout=timedelta(seconds=20))
    if dist.get_rank() == int(who):

        def fail(*_: Any) -> None:
            raise ZeroDivisionError("my own mistake")

        pipe.optimizer.register_step_pre_hook(fail)
    _notice(pipe)


def silent(folder: Path) -> Any:
    """The second rank is alive and does not take part."""
    pipe = BlockPipeline(network("man"), make_optimizer, timeout=timedelta(seconds=2))
    if dist.get_rank() == 1:
        time.sleep(6)
        sys.exit(0)
    _notice(pipe)


def _notice(pipe: BlockPipeline) -> None:
    try:
        pipe.run(batches(50) if dist.get_rank() == 0 else None)
    except NeighbourError as error:
        print(error)
        sys.stdout.flush()
        os._exit(LOST)


def replicated(folder: Path, accumulate: str) -> Any:
    """DistributedDataParallel around a local network; each rank has half of every batch."""
    torch.manual_seed(1 + dist.get_rank())  # rank 0's weights count
    net = LocalNetwork(kinds.mlp().double(), 3, MAN(Greedy(), momentum=0.5), example=torch.rand(2, 6).double())
    wrapped = DistributedDataParallel(net)
    optimizer = make_optimizer(list(net.trainable_parameters()))
    for step in range(4):
        optimizer.zero_grad()
        x, y = whole(step)
        x, y = x[dist.get_rank() :: 2], y[dist.get_rank() :: 2]
        if accumulate == "no_sync":
            with wrapped.no_sync():
                local_backward(wrapped, x[:2], y[:2], weight=0.5, last=False)
            local_backward(wrapped, x[2:], y[2:], weight=0.5)
        elif accumulate == "last":
            local_backward(wrapped, x[:2], y[:2], weight=0.5, last=False)
            local_backward(wrapped, x[2:], y[2:], weight=0.5)
        else:
            local_backward(wrapped, x, y)
        optimizer.step()
    if dist.get_rank() == 1:
        torch.save(state(net), folder / f"rank1-{accumulate}.pt")
    return state(net)


def whole(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.rand(8, 6, generator=generator).double(), torch.randint(0, 4, (8,), generator=generator)


if __name__ == "__main__":
    ranks.work(globals())
