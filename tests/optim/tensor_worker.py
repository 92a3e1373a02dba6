"""Tensors that several ranks share, with drawn gradients; every function is a case for `ranks.launch`."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

import polyak.optim
from tests import ranks
from tests.optim.training import OPTIONS

SHAPES = {"square": (6, 8), "narrow": (5, 1), "odd": (7, 3), "vector": (5,), "kernel": (4, 3, 2, 2), "plain": (4, 4)}
STEPS = 6


def drawn(name: str, step: int) -> Tensor:
    """The weight (step -1) or gradient of a tensor."""
    generator = torch.Generator().manual_seed(1000 * list(SHAPES).index(name) + step + 1)
    return torch.randn(SHAPES[name], generator=generator, dtype=torch.float64)


def made(method: str, params: dict[str, nn.Parameter]) -> polyak.optim.Optimizer:
    options = {"lr": 0.01, "weight_decay": 0.1, **OPTIONS.get(method, {})}
    return polyak.optim.get(method)(params.items(), **options)


def lacks(rank: int, name: str, step: int) -> bool:
    """Each rank misses other gradients in other steps; the second misses all in step 4."""
    return (rank == 1 and step == 4) or (list(SHAPES).index(name) + step + 2 * rank) % 5 == 0


def local_run(method: str, rank: int | None) -> dict[str, Tensor]:
    """One process, with the gaps of that rank, or with none."""
    params = {name: nn.Parameter(drawn(name, -1)) for name in SHAPES}
    optimizer = made(method, params)
    for step in range(STEPS):
        for name, p in params.items():
            p.grad = None if rank is not None and lacks(rank, name, step) else drawn(name, step)
        optimizer.step()
    return {name: p.detach() for name, p in params.items()}


def gaps(folder: Path, method: str) -> Any:
    """Plain tensors; no rank waits for another. The results of both ranks."""
    mine = local_run(method, dist.get_rank())
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def shared(method: str, placements: dict[str, list[Placement]], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Train tensors placed so. A replicated one gets its gradient as one term a rank."""
    mesh = init_device_mesh("cpu", shape)
    world = dist.get_world_size()
    params = {n: nn.Parameter(distribute_tensor(drawn(n, -1), mesh, where)) for n, where in placements.items()}
    params["plain"] = nn.Parameter(drawn("plain", -1))
    optimizer = made(method, params)
    for step in range(STEPS):
        for name, p in params.items():
            if name == "plain":
                p.grad = drawn(name, step)
            elif all(where.is_replicate() for where in placements[name]):
                terms = DTensor.from_local(drawn(name, step) / world, mesh, [Partial()] * mesh.ndim)
                p.grad = terms
            else:
                p.grad = distribute_tensor(drawn(name, step), mesh, placements[name])
        optimizer.step()
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).detach() for n, p in params.items()}


def columns(folder: Path, method: str) -> Any:
    """Matrices sharded along dimension 1, as tensor parallelism does; `narrow` is empty on the second rank."""
    where = {n: [Shard(1)] if len(shape) > 1 else [Replicate()] for n, shape in SHAPES.items() if n != "plain"}
    return shared(method, where, (2,))


def replicated(folder: Path, method: str) -> Any:
    """Whole tensors on both ranks, whose gradients come as terms that are still to be added."""
    return shared(method, {name: [Replicate()] for name in SHAPES if name != "plain"}, (2,))


def rows(folder: Path, method: str) -> Any:
    return shared(method, {name: [Shard(0)] for name in SHAPES if name != "plain"}, (2,))


def hybrid(folder: Path, method: str) -> Any:
    """A mesh of two dimensions, replicated along the first, as hybrid sharding does."""
    return shared(method, {name: [Replicate(), Shard(0)] for name in SHAPES if name != "plain"}, (1, 2))


def refusal(folder: Path, method: str) -> Any:
    try:
        columns(folder, method)
    except ValueError as error:
        return str(error)
    return "accepted"


def thawed(folder: Path, method: str) -> Any:
    """A sharded parameter that is unfrozen in the middle gets its first gradient on the first rank only."""
    mesh = init_device_mesh("cpu", (2,))
    params = {n: nn.Parameter(distribute_tensor(drawn(n, -1), mesh, [Shard(0)])) for n in ("square", "odd")}
    params["odd"].requires_grad_(False)
    optimizer = made(method, params)
    for step in range(STEPS):
        params["odd"].requires_grad_(step > 1)
        for name, p in params.items():
            absent = name == "odd" and (step < 2 or (step == 2 and dist.get_rank() == 1))
            p.grad = None if absent else distribute_tensor(drawn(name, step), mesh, [Shard(0)], src_data_rank=None)
        optimizer.step()
    return {name: p.full_tensor().detach() for name, p in params.items()}


if __name__ == "__main__":
    ranks.work(globals())
