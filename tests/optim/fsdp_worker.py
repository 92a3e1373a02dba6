"""FSDP2 trainings, one rank of them; every function is a case for `ranks.launch`."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard

from polyak.optim import Optimizer
from tests import ranks
from tests.optim.training import STEPS, build, net, train, weights

HALF = STEPS // 2
FULL = StateDictOptions(full_state_dict=True)


def sharded() -> nn.Module:
    model = net()
    fully_shard(model.first)
    fully_shard(model)
    return model


def mine() -> slice:
    """This rank's half of a batch."""
    return slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)


def equal(folder: Path, method: str, execution: str) -> Any:
    """Training from start to end."""
    model = sharded()
    optimizer = build(method, model, execution)
    train(model, optimizer, part=mine())
    optimizer.diagnostics(loss=1.0)  # asks for sums across ranks as a step does
    if execution == "compiled":
        assert optimizer.explain().splitlines()[0].startswith(f"{type(optimizer).__name__}: compiled")
    return weights(model)


def missing(folder: Path, method: str, step: str) -> Any:
    """The second rank loses one gradient in one step."""
    model = sharded()

    def lose(now: int) -> None:
        if now == int(step) and dist.get_rank() == 1:
            model.second.weight.grad = None

    train(model, build(method, model), part=mine(), meddle=lose)
    return weights(model)


def infinite(folder: Path, method: str) -> Any:
    """A GradScaler meets an infinite gradient in the second rank's shard only, in the step HALF."""
    model = sharded()
    optimizer = build(method, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=100)

    class Scaled:
        """Stands for the optimizer, so that the scaler steps it."""

        zero_grad = optimizer.zero_grad

        def step(self) -> None:
            scaler.step(optimizer)
            scaler.update()

    def spoil(step: int) -> None:
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(scaler.get_scale())
        if step == HALF and dist.get_rank() == 1:
            model.second.weight.grad.to_local().fill_(torch.inf)

    scaler.scale(torch.ones(()))  # creates the scale
    train(model, Scaled(), part=mine(), meddle=spoil)  # type: ignore[arg-type]
    assert scaler.get_scale() == 1.0
    return weights(model)


def refused(folder: Path, method: str) -> Any:
    """check_finite: all ranks refuse the step for a NaN on one, and nothing has changed."""
    model = sharded()
    optimizer = build(method, model, check_finite=True)
    before = weights(model)

    def spoil(step: int) -> None:
        if dist.get_rank() == 1:
            model.second.weight.grad.to_local().fill_(torch.nan)

    message = ""
    try:
        train(model, optimizer, 0, 1, mine(), spoil)
    except RuntimeError as error:
        message = str(error)
    said = [None, None]
    dist.all_gather_object(said, message)
    after = weights(model)
    return said, all(torch.equal(after[name], before[name]) for name in before)


def state_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    weights_now, state = get_state_dict(model, optimizer)
    return {"model": weights_now, "optim": state}


def straight(folder: Path, method: str) -> Any:
    """Train to the end without a stop."""
    model = sharded()
    train(model, build(method, model), part=mine())
    return weights(model)


def saved(folder: Path, method: str) -> Any:
    """Save in the middle and go on; the full state too."""
    model = sharded()
    optimizer = build(method, model)
    train(model, optimizer, 0, HALF, mine())
    dcp.save(state_of(model, optimizer), checkpoint_id=folder / method)
    full = deepcopy((weights(model), get_optimizer_state_dict(model, optimizer, options=FULL)))
    train(model, optimizer, HALF, HALF + 1, mine())
    return full


killed = ranks.die_together


def resumed(folder: Path, method: str) -> Any:
    """Load what killed ranks saved and train to the end."""
    model = sharded()
    optimizer = build(method, model)
    before = weights(model)
    state = state_of(model, optimizer)
    assert all(torch.equal(w, before[name]) for name, w in weights(model).items())
    assert all(float(s["step"]) == 0 for s in optimizer.state.values() if "step" in s), "a step was faked"
    dcp.load(state, checkpoint_id=folder / method)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    train(model, optimizer, HALF, STEPS, mine())
    return weights(model)


def received(folder: Path, method: str) -> Any:
    """The same from the state of one process, which only the first rank reads."""
    model = sharded()
    train(model, build(method, model), 0, HALF, mine())
    optimizer = build(method, model)
    optimizer.zero_grad()  # as for torch.optim: where gradients are there, torch asks for no state
    whole = torch.load(folder / f"alone:{method}.pt") if dist.get_rank() == 0 else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, optimizer, whole, options=options)
    train(model, optimizer, HALF, STEPS, mine())
    return weights(model)


if __name__ == "__main__":
    ranks.work(globals())
