"""Local updates, one rank of them; every function of ``CASES`` is a case of ``local:...`` for `ranks.launch`."""

import io
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from polyak.distributed import LocalUpdates
from tests import ranks
from tests.distributed.jobs import PERIOD, STEPS, inner_and_outer, learn, net


def made(outer: str = "nesterov", **options: Any) -> tuple[nn.Module, torch.optim.Optimizer, LocalUpdates]:
    model = net()
    inner, outside = inner_and_outer(model, outer)
    return model, inner, LocalUpdates(inner, outside, PERIOD, **options)


def weights(model: nn.Module) -> list[Tensor]:
    found = [p.detach() for p in model.parameters()]
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.clone() for p in found]


def everyone(said: Any) -> list[Any]:
    heard: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(heard, said)
    return heard


def diloco() -> Any:
    model, inner, _ = made()
    learn(model, inner, 0, STEPS, dist.get_rank())
    return weights(model)


def delayed() -> Any:
    model, inner, _ = made("delayed")
    learn(model, inner, 0, STEPS, dist.get_rank())
    return weights(model)


def clipped() -> Any:
    model, inner, _ = made(max_delta_norm=0.01)
    learn(model, inner, 0, STEPS, dist.get_rank())
    return weights(model)


def absent() -> Any:
    model, inner, local = made()
    local.participates = dist.get_rank() == 0
    learn(model, inner, 0, PERIOD, dist.get_rank())
    local.participates = True
    learn(model, inner, PERIOD, STEPS, dist.get_rank())
    return weights(model)


def spoiled() -> Any:
    model, inner, _ = made()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        learn(model, inner, 0, PERIOD, dist.get_rank(), spoil=dist.get_rank() == 1)
    learn(model, inner, PERIOD, STEPS, dist.get_rank())
    return weights(model), everyone(str(heard[-1].message))


def buffered() -> Any:
    """A buffer of the second worker is NaN at the first sync point."""
    mine = torch.full((2,), torch.nan if dist.get_rank() else 3.0)
    model, inner, _ = made(buffers=[mine])
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        learn(model, inner, 0, PERIOD, dist.get_rank())
    heard_all, buffers = everyone(str(heard[-1].message)), everyone(mine.tolist())
    return weights(model), buffers, heard_all


def unlike() -> Any:
    """What is said where buffers, trained parameters, arguments, or parameters added on the way differ."""
    rank, said = dist.get_rank(), []

    def first() -> None:
        made(buffers=[torch.ones(3 + rank)])

    def second() -> None:
        model = net()
        model.first.weight.requires_grad = rank == 0
        LocalUpdates(*inner_and_outer(model), PERIOD)

    def third() -> None:
        made(max_delta_norm=1.0 + rank)

    def fourth() -> None:
        _, inner, local = made()
        if rank == 0:
            inner.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
        local.sync()

    for refused in (first, second, third, fourth):
        try:
            refused()
            said.append("")
        except ValueError as error:
            said.append(str(error))
    return everyone(said)


def spoiled_all() -> Any:
    model, inner, local = made()
    warnings.simplefilter("ignore")
    learn(model, inner, 0, PERIOD, dist.get_rank(), spoil=True)
    return weights(model), dict(local.outer.state)


def apart() -> Any:
    model, inner, local = made()
    learn(model, inner, 0, 2, dist.get_rank())
    try:
        if dist.get_rank() == 0:
            learn(model, inner, 2, 3)
        else:
            local.sync()
    except RuntimeError as error:
        return everyone(str(error))
    return everyone("")


def alike() -> Any:
    model = net() if dist.get_rank() == 0 else nn.Linear(3, 3, dtype=torch.float64)
    try:
        LocalUpdates(*inner_and_outer(model), PERIOD)
    except ValueError as error:
        return everyone(str(error))
    return everyone("")


def resumed() -> Any:
    model, inner, local = made("delayed")
    learn(model, inner, 0, PERIOD + 1, dist.get_rank())
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "local": local.state_dict()}, file)
    learn(model, inner, PERIOD + 1, 4 * PERIOD, dist.get_rank())
    file.seek(0)
    saved = torch.load(file)
    again, inside, other = made("delayed")
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["local"])
    learn(again, inside, PERIOD + 1, 4 * PERIOD, dist.get_rank())
    return weights(model), weights(again)


def sharded() -> Any:
    """Two ranks share the model of one worker."""
    model = net()
    fully_shard(model.first)
    fully_shard(model)
    inner, outer = inner_and_outer(model)
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replica", "shard"))
    LocalUpdates(inner, outer, PERIOD, mesh["replica"].get_group())
    learn(model, inner, 0, STEPS)
    return weights(model)


def replicas() -> Any:
    """Four ranks are two workers, each of two shards."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard"))
    model = net()
    fully_shard(model.first, mesh=mesh["shard"])
    fully_shard(model, mesh=mesh["shard"])
    inner, outer = inner_and_outer(model)
    LocalUpdates(inner, outer, PERIOD, mesh["replica"].get_group(), max_delta_norm=0.01)
    learn(model, inner, 0, STEPS, mesh["replica"].get_local_rank())
    return weights(model)


CASES = (
    diloco,
    delayed,
    clipped,
    absent,
    spoiled,
    buffered,
    unlike,
    spoiled_all,
    apart,
    alike,
    resumed,
    sharded,
    replicas,
)


def local(folder: Path, case: str) -> Any:
    return {function.__name__: function for function in CASES}[case]()


if __name__ == "__main__":
    ranks.work(globals())
