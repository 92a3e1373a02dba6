"""MT-DAO, one rank of it; each case of ``run:...`` is for `ranks.launch`."""

import copy
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from polyak.distributed import MTDAO
from tests import ranks

STEPS = 11
ONE: dict[str, Any] = {"betas": ((0.99,), 0.999), "weight": (0.9,), "period": 3}
CASES: dict[str, dict[str, Any]] = {
    "adopt": {**ONE, "variant": "adopt"},
    "adam": {**ONE, "variant": "adam", "eps": 1e-8, "weight_decay": 0.1},
    "corrected": {**ONE, "variant": "adam", "bias_correction": True, "sync_first": True},
    "sgdm": {**ONE, "variant": "sgdm", "max_grad_norm": 0.0},
    "several": {
        "variant": "adopt", "betas": ((0.9, 0.99), 0.999), "weight": (0.2, 0.7), "period": 4, "weight_decay": 0.1,
        "periods": {"exp_avg_1": 2, "exp_avg_2": 5, "exp_avg_sq": None},
    },
    "apart": {
        "variant": "adam", "betas": ((0.9, 0.99), 0.999), "weight": (0.2, 0.7), "period": 2,
        "periods": {"exp_avg_1": None, "exp_avg_2": 5, "exp_avg_sq": 3}, "sync_first": True,
    },
}  # fmt: skip


def start() -> Tensor:
    return torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2)


def gradients(worker: int, steps: int) -> Tensor:
    generator = torch.Generator().manual_seed(worker)
    return torch.randn(steps, 3, 2, generator=generator, dtype=torch.float64)


def everyone(own: Any) -> list[Any]:
    heard: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(heard, own)
    return heard


def go(p: Parameter, optimizer: MTDAO, first: int, last: int, missing: int = -1) -> None:
    for t, g in enumerate(gradients(dist.get_rank(), STEPS)):
        if first <= t < last:
            p.grad = torch.full_like(p, torch.nan) if t == missing else g.clone()
            optimizer.step()


def made(case: str = "adopt", **options: Any) -> tuple[Parameter, MTDAO]:
    p = Parameter(start())
    return p, MTDAO([p], lr=0.05, execution="eager", **{**CASES[case], **options})


def refused(function: Any) -> list[str]:
    try:
        function()
    except (ValueError, RuntimeError) as error:
        return everyone(str(error))
    return everyone("")


def missing() -> Any:
    p, optimizer = made("adam")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        go(p, optimizer, 0, STEPS, missing=2 if dist.get_rank() == 1 else -1)
    return everyone(p.detach()), everyone([str(w.message) for w in heard if "not finite" in str(w.message)])


def late() -> Any:
    """The second worker's first gradient is NaN; second moments are not averaged before its own is there."""
    p, optimizer = made("adopt")
    warnings.simplefilter("ignore")
    go(p, optimizer, 0, STEPS, missing=0 if dist.get_rank() == 1 else -1)
    return everyone(p.detach())


def lost() -> Any:
    """The second worker's weights are NaN before the sync of the third step."""
    p, optimizer = made("adopt")
    go(p, optimizer, 0, 2)
    if dist.get_rank() == 1:
        p.data.fill_(torch.nan)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        go(p, optimizer, 2, 3)
    return everyone(p.detach()), everyone([str(w.message) for w in heard if "weights" in str(w.message)])


def grown() -> Any:
    """The first worker adds a group on the way."""
    p, optimizer = made("adopt")
    if dist.get_rank() == 0:
        optimizer.add_param_group({"params": [Parameter(torch.zeros(2, dtype=torch.float64))]})
    return refused(lambda: go(p, optimizer, 0, 3))


def frozen() -> Any:
    p = Parameter(start(), requires_grad=dist.get_rank() == 0)
    return refused(lambda: MTDAO([p], period=2))


def decayed() -> Any:
    return refused(lambda: made(weight_decay=0.1 * dist.get_rank()))


def grouped() -> Any:
    """Copies share the group; what was pickled with it is refused."""
    group = dist.new_group([0, 1])
    _, optimizer = made(process_group=group)
    shares = copy.deepcopy(optimizer).workers.group is group
    return shares, refused(lambda: pickle.loads(pickle.dumps(optimizer)))


def apart() -> Any:
    p, optimizer = made(period=6, periods=None)
    if dist.get_rank() == 0:
        go(p, optimizer, 0, 5)
        return refused(lambda: go(p, optimizer, 5, 6))
    go(p, optimizer, 0, 4)
    return refused(optimizer.sync)


def alike() -> Any:
    shape = (2, 3) if dist.get_rank() else (3, 2)
    return refused(lambda: MTDAO([Parameter(torch.zeros(shape))], period=2))


def arguments() -> Any:
    return refused(lambda: made(period=3 + dist.get_rank()))


def joined() -> Any:
    p, optimizer = made(period=100)
    if dist.get_rank() == 0:
        go(p, optimizer, 0, 5)
    else:
        p.data.fill_(7.0)
    optimizer.participates = dist.get_rank() == 0
    optimizer.sync()
    return everyone((p.detach(), dict(optimizer.state[p]), optimizer.made))


def resumed() -> Any:
    p, optimizer = made("several")
    go(p, optimizer, 0, 5)
    file = io.BytesIO()
    torch.save({"p": p.detach(), "optimizer": optimizer.state_dict()}, file)
    go(p, optimizer, 5, STEPS)
    file.seek(0)
    saved = torch.load(file)
    q, other = made("several")
    q.data.copy_(saved["p"])
    other.load_state_dict(saved["optimizer"])
    go(q, other, 5, STEPS)
    return p.detach(), q.detach()


OTHERS = {
    f.__name__: f for f in (missing, alike, arguments, joined, resumed, late, lost, grown, frozen, decayed, grouped)
} | {"meeting": apart}


def run(folder: Path, case: str) -> Any:
    if case in OTHERS:
        return OTHERS[case]()
    p, optimizer = made(case)
    go(p, optimizer, 0, STEPS)
    return everyone(p.detach())


if __name__ == "__main__":
    ranks.work(globals())
