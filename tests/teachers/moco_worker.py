"""MoCo on two ranks; every function is a case for `ranks.launch`."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polyak.teachers import MoCo
from tests import ranks
from tests.reproduce.contrast import on_this_rank
from tests.reproduce.vector import RECORDED, Vector
from tests.teachers.nets import state, wander


def recorded(folder: Path, name: str) -> Any:
    """What all ranks found of a vector of several processes."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, on_this_rank(Vector(RECORDED, name), dist.get_rank()))
    return {key: torch.from_numpy(value) for own in found for key, value in own.items()}


def drawn(folder: Path) -> Any:
    """Both ranks shuffle alike by themselves, and have equal queues."""
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    moco = MoCo(encoder, dim=4, queue_size=6)
    dist.broadcast_object_list(state := [moco.state_dict()], 0)
    moco.load_state_dict(state[0])
    torch.manual_seed(dist.get_rank())
    orders: list[Any] = [None, None]
    dist.all_gather_object(orders, moco.permutation(8, torch.device("cpu")))
    for _ in range(4):
        moco(torch.randn(2, 3), torch.randn(2, 3))
    queues: list[Any] = [None, None]
    dist.all_gather_object(queues, moco.queue.read())
    return torch.equal(*orders), torch.equal(*queues)


def refusals(x_q: Tensor, x_k: Tensor) -> list[Any]:
    """What each rank says to a batch, and whether its state is as before."""
    torch.manual_seed(0)
    moco = MoCo(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), dim=4, queue_size=8)
    moco(torch.randn(2, 3), torch.randn(2, 3))
    wander(moco.encoder[0], 1)
    before = state(moco)
    said: list[Any] = [None, None]
    try:
        moco(x_q, x_k)
        message = ""
    except ValueError as error:
        message = str(error)
    same = all(torch.equal(x, before[name]) for name, x in state(moco).items()) and moco.ema.step == 1
    dist.all_gather_object(said, (message, same))
    return said


def unequal(folder: Path) -> Any:
    """Batches of different sizes are refused on all ranks, and nothing has changed."""
    x = torch.randn(2 + dist.get_rank(), 3)
    return refusals(x, x)


def uneven(folder: Path) -> Any:
    """So are two views of different sizes on one rank."""
    return refusals(torch.randn(2, 3), torch.randn(2 + dist.get_rank(), 3))


def poisoned(folder: Path, view: str) -> Any:
    """A NaN in one rank's views is refused by both."""
    views = {"x_q": torch.ones(2, 3), "x_k": torch.ones(2, 3)}
    if dist.get_rank() == 1:
        views[view][1, 2] = torch.nan
    return refusals(**views)


if __name__ == "__main__":
    ranks.work(globals())
