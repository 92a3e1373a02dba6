"""MASHA and momentum hooks, one rank of them; each case is for `ranks.launch`."""

import copy
import io
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import polyak.distributed
import polyak.optim
from polyak.distributed import MomentumHook
from polyak.optim.solvers.compressors import Compressor, Identity, Natural, RandK, TopK
from tests import ranks
from tests.distributed.jobs import batch, net

SENT: dict[str, tuple[str, Compressor, dict[str, Any]]] = {
    "rand": ("MASHA1", RandK(3), {}),
    "natural": ("MASHA1", Natural(), {"server_compressor": Natural(), "tau": 0.6}),
    "tensors": ("MASHA1", RandK(2), {"per_tensor": True, "tau": 0.7}),
    "top": ("MASHA2", TopK(3), {}),
    "both": ("MASHA2", TopK(3), {"server_compressor": TopK(5), "average": True}),
}
HOOKS: dict[str, tuple[float, Compressor]] = {
    "plain": (0.9, Identity()), "top": (0.9, TopK(5)), "rand": (0.8, RandK(4)), "alone": (0.0, TopK(3)),
}  # fmt: skip
STEPS, MISSING = 12, (1, 2)


def players() -> list[nn.Parameter]:
    return [nn.Parameter(torch.linspace(-1, 1, n, dtype=torch.float64)) for n in (4, 3)]


def loss_of(worker: int, params: list[nn.Parameter]) -> Any:
    generator = torch.Generator().manual_seed(worker)
    a = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    b = torch.randn(4, generator=generator, dtype=torch.float64)
    x, y = params
    return lambda: x @ a @ y + b @ x + 0.1 * (x @ x - y @ y)


def solver(where: Any, case: str, params: list[nn.Parameter]) -> Any:
    name, compressor, options = SENT[case]
    groups = [{"params": [params[0]]}, {"params": [params[1]], "maximize": True}]
    return getattr(where, name)(groups, compressor, lr=0.03, seed=5, **options)


def masha(folder: Path, case: str) -> Any:
    params = players()
    one, values = solver(polyak.distributed, case, params), []
    loss = loss_of(dist.get_rank(), params)
    for _ in range(STEPS):
        values.append(float(one.step(loss)))
    return [p.detach() for p in params], values, one.sent


def masha_resumed(folder: Path) -> Any:
    params = players()
    one, loss = solver(polyak.distributed, "both", params), loss_of(dist.get_rank(), params)
    for _ in range(4):
        one.step(loss)
    file = io.BytesIO()
    torch.save((one.state_dict(), [p.detach() for p in params]), file)
    for _ in range(4):
        one.step(loss)
    file.seek(0)
    state, weights = torch.load(file)
    again = players()
    for p, w in zip(again, weights, strict=True):
        p.data.copy_(w)
    other, loss = solver(polyak.distributed, "both", again), loss_of(dist.get_rank(), again)
    other.load_state_dict(state)
    for _ in range(4):
        other.step(loss)
    return [p.detach() for p in params], [p.detach() for p in again]


def everyone(own: Any) -> list[Any]:
    heard: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(heard, own)
    return heard


def masha_spoiled(folder: Path) -> Any:
    params = players()
    one, loss = solver(polyak.distributed, "top", params), loss_of(dist.get_rank(), params)
    one.step(loss)
    before = [p.detach().clone() for p in params]
    said = ""
    try:
        one.step(loss if dist.get_rank() == 0 else lambda: params[0].sum() * torch.nan)
    except RuntimeError as error:
        said = str(error)
    same = all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
    return everyone((said, same))


def masha_apart(folder: Path) -> Any:
    """The second worker goes back a step; then the first gives what cannot be called."""
    params = players()
    one, loss, said = solver(polyak.distributed, "rand", params), loss_of(dist.get_rank(), params), []
    one.step(loss)
    before = copy.deepcopy(one.state_dict())
    one.step(loss)
    after = copy.deepcopy(one.state_dict())
    for state, own in ((before if dist.get_rank() else after, loss), (after, loss if dist.get_rank() else "loss")):
        one.load_state_dict(state)
        try:
            one.step(own)
        except RuntimeError as error:
            said.append(str(error))
    return everyone(said)


def masha_seeds(folder: Path) -> Any:
    try:
        polyak.distributed.MASHA1(players(), RandK(3), seed=dist.get_rank())
    except ValueError as error:
        return everyone(str(error))
    return everyone("")


class Renamed(Natural):
    """Another class with the same arguments."""


def masha_kinds(folder: Path) -> Any:
    """Compressors of two classes and the same arguments."""
    try:
        polyak.distributed.MASHA1(players(), Natural() if dist.get_rank() else Renamed())
    except ValueError as error:
        return everyone(str(error))
    return everyone("")


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int, missing: tuple[int, int] = (-1, -1)
) -> list[bool]:
    """Steps, but for those whose gradient is not finite; whether each was. ``missing``: worker and step of a NaN."""
    found = []
    for t in range(first, last):
        optimizer.zero_grad()
        x, y = batch(dist.get_rank(), t)
        x = x * torch.nan if (dist.get_rank(), t) == missing else x
        nn.functional.mse_loss(model(x), y).backward()
        found.append(all(bool(p.grad.isfinite().all()) for p in model.parameters()))
        if found[-1]:
            optimizer.step()
    return found


def hooked(case: str) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer, MomentumHook]:
    module = net()
    momentum, compressor = HOOKS[case]
    # buckets of one parameter each at first, which are divided anew after the first step
    model = DistributedDataParallel(module, bucket_cap_mb=1e-4)
    hook = MomentumHook(module, momentum, compressor, seed=3)
    hook.register(model)
    return module, model, torch.optim.SGD(module.parameters(), lr=0.1), hook


def hook(folder: Path, case: str) -> list[Tensor]:
    module, model, optimizer, _ = hooked(case)
    train(model, optimizer, 0, STEPS)
    return [p.detach() for p in module.parameters()]


def hook_missing(folder: Path, case: str) -> Any:
    """The second worker's gradient of the third step is NaN."""
    module, model, optimizer, own = hooked(case)
    finite = train(model, optimizer, 0, STEPS, MISSING)
    return [p.detach() for p in module.parameters()], everyone((finite, own.steps))


def hook_registered(folder: Path) -> Any:
    """What the hook says of another group and of another model, and the group that it takes."""
    both, module, said = dist.new_group([0, 1]), net(), []
    model = DistributedDataParallel(module, process_group=both)
    for hook in (MomentumHook(module, process_group=dist.group.WORLD), MomentumHook(net())):
        try:
            hook.register(model)
        except ValueError as error:
            said.append(str(error))
    taken = MomentumHook(module)
    taken.register(model)
    return said, taken.workers.group is both


def hook_halves(folder: Path) -> Any:
    """What arrives of 1 and 2^-8 in bfloat16, which adds them to 1; and the dtype of the momenta."""
    module = nn.Linear(1, 1, bias=False).bfloat16()
    model = DistributedDataParallel(module)
    own = MomentumHook(module, 0.0)
    own.register(model)
    (model(torch.ones(1, 1, dtype=torch.bfloat16)) * (1 - 2 * dist.get_rank()) * 256 ** -dist.get_rank()).backward()
    return float(module.weight.grad), own.momenta["weight"].dtype


def hook_resumed(folder: Path) -> Any:
    module, model, optimizer, own = hooked("top")
    train(model, optimizer, 0, 5)
    file = io.BytesIO()
    torch.save((own.state_dict(), module.state_dict()), file)
    train(model, optimizer, 5, STEPS)
    file.seek(0)
    state, weights = torch.load(file)
    again, model, optimizer, own = hooked("top")
    again.load_state_dict(weights)
    own.load_state_dict(state)
    train(model, optimizer, 5, STEPS)
    return [p.detach() for p in module.parameters()], [p.detach() for p in again.parameters()]


if __name__ == "__main__":
    ranks.work(globals())
