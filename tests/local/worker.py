"""What one of two ranks does; every function is a case for `ranks.launch`."""

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from polyak.local import (
    DGL,
    MAN,
    AugLocal,
    Auxiliary,
    AuxiliaryNet,
    BlockPipeline,
    Greedy,
    InfoPro,
    LocalNetwork,
    NeighbourError,
    Site,
    cifar_resnet,
    local_backward,
)
from tests import ranks
from tests.local import kinds


class PaperInside(Auxiliary):
    """The variant "paper" but for block 2, at the border of two ranks."""

    def build(self, site: Site) -> AuxiliaryNet:
        return MAN(DGL(4), momentum=0.7, variant="code" if site.block == 2 else "paper").build(site)


AUXILIARIES = {
    "greedy": Greedy(),
    "dgl": DGL(4),
    "auglocal": AugLocal(1),
    "infopro": InfoPro(feature_dim=6),
    "man": MAN(DGL(4), momentum=0.7),
    "man-infopro": MAN(InfoPro(feature_dim=6), momentum=0.7, variant="scale"),
    "paper": MAN(DGL(4), variant="paper"),
    "paper-inside": PaperInside(),
}
make_optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
LOST = 3  # exit code of a rank that noticed that its neighbour has gone
NOTICED = "noticed"
PATIENT = timedelta(minutes=10)  # longer than a test may take: who is lost is not noticed by waiting


def network(name: str, cuts: Any = "balanced") -> LocalNetwork:
    torch.manual_seed(1)
    model = cifar_resnet(20).double()
    return LocalNetwork(model, 4, AUXILIARIES[name], example=torch.rand(2, 3, 8, 8).double(), cuts=cuts)


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
    return {k: torch.as_tensor(v) for k, v in net.state_dict().items()}


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
        lambda: BlockPipeline(network("man", [1, 2, 3 + dist.get_rank(), 9]), make_optimizer),
        lambda: BlockPipeline(net, make_optimizer, split=[1, 3] if dist.get_rank() == 0 else [2, 2]),
    ):
        try:
            act()
        except ValueError as error:
            messages.append(str(error))
    return messages


def dies(folder: Path, who: str) -> Any:
    """A rank is killed in the third iteration; the other must notice, without waiting."""
    pipe = BlockPipeline(network("man"), make_optimizer, timeout=PATIENT)
    if dist.get_rank() == int(who):
        count = iter(range(10))
        pipe.optimizer.register_step_pre_hook(lambda *_: ranks.die() if next(count) == 2 else None)
    _notice(folder, pipe)


def raises(folder: Path, who: str) -> Any:
    """A rank fails with an error of its own."""
    pipe = BlockPipeline(network("man"), make_optimizer, timeout=PATIENT)
    if dist.get_rank() == int(who):

        def fail(*_: Any) -> None:
            raise ZeroDivisionError("my own mistake")

        pipe.optimizer.register_step_pre_hook(fail)
    _notice(folder, pipe)


def silent(folder: Path) -> Any:
    """The second rank is alive and does not take part."""
    pipe = _hasty(network("man"))
    if dist.get_rank() == 1:
        _outlive_the_other(folder)
    _notice(folder, pipe)


def absent(folder: Path) -> Any:
    """The second rank makes no pipeline."""
    net = network("man")
    if dist.get_rank() == 1:
        dist.barrier()
        _outlive_the_other(folder)
    _noticed(folder, lambda: _hasty(net))


def forgetful(folder: Path) -> Any:
    """The second rank does not gather."""
    pipe = _hasty(network("man"))
    if dist.get_rank() == 1:
        _outlive_the_other(folder)
    _noticed(folder, pipe.gather)


def _hasty(net: LocalNetwork) -> BlockPipeline:
    dist.barrier()  # so that a rank that is slow to start is not taken for one that does not answer
    return BlockPipeline(net, make_optimizer, timeout=timedelta(seconds=2))


def _notice(folder: Path, pipe: BlockPipeline) -> None:
    _noticed(folder, lambda: pipe.run(batches(50) if dist.get_rank() == 0 else None))


def _noticed(folder: Path, act: Callable[[], Any]) -> None:
    try:
        act()
    except NeighbourError as error:
        print(error)
        (folder / NOTICED).touch()
        ranks.leave(LOST)


def _outlive_the_other(folder: Path) -> NoReturn:
    """Stay, and do nothing, until the other rank has noticed that nothing is done."""
    while not (folder / NOTICED).exists():
        time.sleep(0.02)
    ranks.leave(0)


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
