"""Write docs/ecosystem.md from the code: how each method goes with what a training has around it, and what is refused.

python tools/make_ecosystem.py            # write it
python tools/make_ecosystem.py --check    # fail if it is out of date
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import polyak.optim
from polyak.optim import AdamW, Optimizer
from polyak.optim.drivers import CMS, DGD, Delayed, LowRank, PeriodicLoRA, XGrad

COLUMNS = ("FSDP2", "DDP", "AMP", "accumulation", "channels_last", "tied", "frozen", "late")
LAYERED = polyak.optim.names(layered=True)


class Net(nn.Module):
    """A few weights of every kind."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.mix = nn.Linear(4, 4)
        self.base = nn.Parameter(torch.zeros(4, 4), requires_grad=False)
        self.a, self.b = nn.Parameter(torch.zeros(2, 4)), nn.Parameter(torch.zeros(4, 2))
        self.head = nn.Linear(4, 8)
        if tied:
            self.head.weight = self.embed.weight


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices, and the rest."""
    listed = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    found: dict[str, list[Any]] = {"matrix": [], "rest": []}
    for name, p in listed:
        found["matrix" if name == "mix.weight" else "rest"].append((name, p))
    return [{"params": params, "role": role} for role, params in found.items()]


def _periodic(model: Any) -> PeriodicLoRA:
    optimizer = AdamW(groups(model))
    return PeriodicLoRA([LowRank("base", model.base, model.a, model.b, 1.0)], optimizer, unload_every=10)


DRIVERS: dict[str, Callable[[Net], Any]] = {
    "xgrad": lambda model: XGrad(AdamW(groups(model))),
    "cms": lambda model: CMS(AdamW(groups(model)), 2),
    "dgd": lambda model: DGD(model),
    "delayed": lambda model: Delayed(AdamW(groups(model)), 1),
    "periodic_lora": _periodic,
}
"""Drivers, on AdamW where they wrap an optimizer."""
WRAPPERS = tuple(name for name in DRIVERS if name != "dgd")
READS_LAYERS = (*LAYERED, "dgd")
NAMES = (*polyak.optim.names(), *LAYERED, *DRIVERS)

Facts = tuple[str, list[str]]
"""What a cell says, and its notes."""


def make(name: str, model: Net) -> Any:
    """A method or driver on a model, with its defaults."""
    if name in DRIVERS:
        return DRIVERS[name](model)
    if name in LAYERED:
        return polyak.optim.create(name, model)
    return polyak.optim.get(name)(groups(model))


@contextmanager
def sharded() -> Iterator[Net]:
    """A model whose weights are sharded, over one rank."""
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = Net(tied=False)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        yield model
    finally:
        if own:
            dist.destroy_process_group()


def refusal(name: str, model: Net) -> str:
    """Why a method is not made for a model; empty if it is."""
    try:
        make(name, model)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def refusals_of_shards() -> dict[str, str]:
    """What is refused under FSDP2, with the reason."""
    with sharded() as model:
        found = {name: refusal(name, model) for name in NAMES}
    return {name: reason for name, reason in found.items() if reason}


def refusals_of_tied() -> dict[str, str]:
    """What is refused where a layer's weight is an embedding's too, with the reason."""
    found = {name: refusal(name, Net(tied=True)) for name in NAMES}
    return {name: reason for name, reason in found.items() if reason}


BEHIND = {" is sharded": "a weight", " are one weight; ": "two names", " is the weight of a linear layer": "one tensor"}
"""What reasons are said of, by the words behind it."""


def _in_short(reason: str) -> str:
    """The reason without the weight and the method that it was said of."""
    whats = {
        " is sharded": "a weight",
        " are one weight; ": "two names",
        " is the weight of a linear layer": "one tensor",
    }
    for mark, what in whats.items():
        if mark in reason:
            said = f"{what}{mark}{reason.split(mark, 1)[1]}"
            return re.sub(r"exclude='\w+'", "`exclude=`", said)
    return reason


def _kinds(name: str) -> set[str]:
    """What a method asks of its tensors."""
    optimizer: Optimizer = make(name, Net(tied=False))
    found: set[str] = set()
    for group in optimizer.param_groups:
        for p in group["params"]:
            found |= {q.kind for q in optimizer.chain_of(group).for_shape(p.shape).questions(group)}
    return found


def _reads_loss(name: str) -> bool:
    optimizer: Optimizer = make(name, Net(tied=False))
    return any("loss" in optimizer.chain_of(group).named for group in optimizer.param_groups)


def _storage(name: str) -> str:
    optimizer: Optimizer = make(name, Net(tied=False))
    return str(optimizer.param_groups[0]["state_storage"])


def _under_fsdp(name: str, refused: dict[str, str]) -> Facts:
    if name in refused:
        return "no", [f"Refused at construction: {_in_short(refused[name])}."]
    if name in WRAPPERS:
        return "yes", ["As the optimizer inside."]
    kinds, notes = _kinds(name), []
    if kinds & {"rows", "columns"}:
        notes.append("Whole rows are needed: shards along dimension 0, as FSDP2 makes them; others are refused.")
    if _storage(name) != "float32":
        notes.append("Memories of a shard are kept whole, not factored: more memory, and steps that differ by that.")
    return "gathers" if "matrix" in kinds else "sums" if kinds else "shards", notes


def _elsewhere(name: str) -> dict[str, Facts]:
    """The cells of one method but for those that are found by construction."""
    cells: dict[str, Facts] = {column: ("yes", []) for column in COLUMNS}
    if name in READS_LAYERS:
        cells["DDP"][1].append(
            "Give it the DistributedDataParallel module itself, so that it reads the layers of all ranks."
        )
        cells["AMP"][1].append("Give it the GradScaler, `scaler=`: what flows through layers is scaled too.")
        cells["late"][1].append(
            "Weights of no layer come by `add_param_group`; for a new layer, call `tap(model)` after it."
        )
    elif name not in WRAPPERS and _reads_loss(name):
        cells["DDP"][1].append("The loss is averaged over the ranks.")
        cells["AMP"][1].append("It is told the unscaled loss, `scaler.step(optimizer, loss=loss)`.")
        cells["accumulation"][1].append("It is told the loss of the whole batch.")
    if name == "cms":
        cells["late"][1].append("A new group says its `period`.")
    if name == "periodic_lora":
        cells["frozen"][1].append("But the weights of its own layers, into which updates are unloaded.")
    return cells


def cells() -> dict[str, dict[str, Facts]]:
    """The whole table."""
    sharded_refused, tied_refused = refusals_of_shards(), refusals_of_tied()
    found = {}
    for name in NAMES:
        found[name] = _elsewhere(name)
        found[name]["FSDP2"] = _under_fsdp(name, sharded_refused)
        if name in tied_refused:
            found[name]["tied"] = "no", [f"Refused at construction: {_in_short(tied_refused[name])}."]
    return found


HEAD = """# What a method goes with

Made from the code by `tools/make_ecosystem.py`, and held by tests: two processes, of DistributedDataParallel and of
FSDP2, train as one does, with parts of batches accumulated, a tied and a frozen weight, and weights that are added on
the way; so does one process in channels_last, and under a GradScaler that skips a step.

- **FSDP2**: "shards": the method is elementwise, and each rank steps what it holds. "sums": sums are added over the
  ranks of the mesh. "gathers": matrices are gathered for a matrix function, whose result is cut again.
- **DDP**: DistributedDataParallel. **AMP**: autocast with a `torch.amp.GradScaler`; a step with gradients that are not
  finite is skipped on all ranks. **accumulation**: several backward passes a step, losses divided by their number.
- **tied**: one weight in two modules; it has one state. **frozen**: no gradient, no step, no state. **late**: weights
  that come by `add_param_group`, or whose first gradient comes late.

Drivers are those of `polyak.optim.drivers`, around AdamW where they wrap an optimizer.
"""


def page() -> str:
    """The whole page."""
    table = cells()
    said = [note for row in table.values() for column in COLUMNS for note in row[column][1]]
    numbers = {note: i for i, note in enumerate(dict.fromkeys(said), 1)}

    def text(fact: Facts) -> str:
        marks = ", ".join(str(numbers[note]) for note in fact[1])
        return f"{fact[0]} ({marks})" if marks else fact[0]

    head = f"| method | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}\n"
    lines = [f"| {name} | {' | '.join(text(row[column]) for column in COLUMNS)} |\n" for name, row in table.items()]
    notes = "".join(f"{i}. {note}\n" for note, i in numbers.items())
    return f"{HEAD}\n{head}{''.join(lines)}\n{notes}"


if __name__ == "__main__":
    from _docs import made  # beside this script

    sys.exit(made("ecosystem.md", page))
