"""Averages in FSDP2 trainings, one rank of them; every function is a case for `ranks.launch`."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from polyak.teachers import EMA, Power, Warmup
from tests import ranks
from tests.optim.training import STEPS, batch, build, net, train, weights

HALF = STEPS // 2


def sharded() -> nn.Module:
    model = net()
    fully_shard(model.first)
    fully_shard(model)
    return model


def made(kind: str) -> tuple[nn.Module, Any, EMA]:
    """A sharded model, its optimizer and its averages: tensors only, or in modules sharded alike."""
    model = sharded()
    optimizer = build("cadamw", model)
    teacher = [sharded(), sharded()] if kind == "module" else None
    return model, optimizer, EMA(model, [Warmup(0.9), Power(0.1)], teacher=teacher).attach(optimizer)


def mine() -> slice:
    return slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)


def full(ema: EMA) -> list[dict[str, Tensor]]:
    return [{name: value.full_tensor() for name, value in average.items()} for average in ema.averages]


def straight(folder: Path, kind: str) -> Any:
    """Train to the end without a stop."""
    model, optimizer, ema = made(kind)
    train(model, optimizer, part=mine())
    return full(ema)


def saved(folder: Path, kind: str) -> Any:
    """Save in the middle and go on."""
    model, optimizer, ema = made(kind)
    train(model, optimizer, 0, HALF, mine())
    model_state, state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optim": state, "ema": ema.state_dict()}, checkpoint_id=folder / kind)
    train(model, optimizer, HALF, HALF + 1, mine())


killed = ranks.die_together


def resumed(folder: Path, kind: str) -> Any:
    """Load what killed ranks saved and train to the end."""
    model, optimizer, ema = made(kind)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optim": optimizer_state, "ema": ema.state_dict()}
    dcp.load(state, checkpoint_id=folder / kind)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    ema.load_state_dict(state["ema"])
    train(model, optimizer, HALF, STEPS, mine())
    return full(ema)


def swapped(folder: Path, kind: str) -> Any:
    """The model's outputs with the averages in it, and whether all is as before afterwards."""
    model, optimizer, ema = made(kind)
    train(model, optimizer, part=mine())
    before, averages = weights(model), full(ema)
    with ema.swapped(), torch.no_grad():
        model.eval()
        output = model(batch(0)[0], 0)
    with torch.no_grad():
        again = model(batch(0)[0], 0)
    same = all(torch.equal(value, before[name]) for name, value in weights(model).items())
    kept = all(torch.equal(value, averages[0][name]) for name, value in full(ema)[0].items())
    return output, same and kept and not torch.equal(again, output), averages[0]


def teaches(folder: Path, kind: str) -> Any:
    """The sharded teacher's own forward."""
    model, optimizer, ema = made(kind)
    train(model, optimizer, part=mine())
    return ema(batch(0)[0], 0), full(ema)[0]


def refused(folder: Path, kind: str) -> Any:
    """A NaN in one rank's shard is refused by all, and nothing has changed; 'copy' is refused at once."""
    model, _, ema = made(kind)
    ema.update()
    before = full(ema)
    if dist.get_rank() == 1:
        with torch.no_grad():
            model.second.weight.to_local().fill_(torch.nan)
    said: list[Any] = [None, None]
    try:
        ema.update()
        message = ""
    except FloatingPointError as error:
        message = str(error)
    dist.all_gather_object(said, message)
    try:
        EMA(model)
        copied = ""
    except ValueError as error:
        copied = str(error)
    same = all(torch.equal(a, b) for a, b in zip(full(ema)[0].values(), before[0].values(), strict=True))
    return said, same, copied


def called_back(folder: Path) -> Any:
    """Averages that the callback for transformers' Trainer saves in a sharded training, and goes on with."""
    from transformers import TrainerState

    from polyak.teachers.transformers import FILE, EMACallback

    args: Any = SimpleNamespace(output_dir=str(folder))
    (folder / f"checkpoint-{HALF}").mkdir(exist_ok=True)

    def begun(state: TrainerState) -> tuple[nn.Module, Any, Any]:
        model = sharded()
        optimizer = build("cadamw", model)
        callback = EMACallback([Warmup(0.9), Power(0.1)], teacher=None)
        callback.on_train_begin(args, state, None, model=model, optimizer=optimizer)
        return model, optimizer, callback

    state = TrainerState(is_world_process_zero=dist.get_rank() == 0)
    model, optimizer, callback = begun(state)
    train(model, optimizer, 0, HALF, mine())
    state.global_step = HALF
    callback.on_save(args, state, None)
    dist.barrier()
    stored = torch.load(folder / f"checkpoint-{HALF}" / FILE, weights_only=True)
    _, _, resumed = begun(state)
    same_shards = all(
        torch.equal(a.to_local(), b.to_local())
        for mine, theirs in zip(resumed.ema.averages, callback.ema.averages, strict=True)
        for a, b in zip(mine.values(), theirs.values(), strict=True)
    )
    shards: list[Any] = [None, None]
    dist.all_gather_object(shards, same_shards and resumed.ema.step == HALF)
    return stored, shards, full(callback.ema)


if __name__ == "__main__":
    ranks.work(globals())
