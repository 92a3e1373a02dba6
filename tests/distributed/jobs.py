"""A small model, batches that differ by worker and step, and local updates of several workers in one process."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from polyak.distributed import DelayedNesterov
from polyak.optim import SGD, AdamW

PERIOD, STEPS = 3, 7


class Net(nn.Module):
    """Three parameters, so that shards have several sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6, bias=False, dtype=torch.float64)
        self.second = nn.Linear(6, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(worker: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * worker + step)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(5, 2, generator=generator, dtype=torch.float64)


def inner_and_outer(model: nn.Module, outer: str = "nesterov") -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    inner = AdamW(model.parameters(), lr=0.05, execution="eager")
    if outer == "delayed":
        return inner, DelayedNesterov(model.parameters(), lr=0.7, momentum=0.8, buffer_size=2, execution="eager")
    return inner, SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True, execution="eager")


def learn(model: nn.Module, optimizer: Any, start: int, stop: int, worker: int = 0, spoil: bool = False) -> None:
    """Steps on a worker's batches."""
    for step in range(start, stop):
        optimizer.zero_grad()
        x, y = batch(worker, step)
        nn.functional.mse_loss(model(x), y).backward()
        if spoil:
            next(model.parameters()).grad.fill_(torch.nan)
        optimizer.step()


def reference(
    workers: int,
    outer: str = "nesterov",
    taking: Callable[[int], list[int]] | None = None,
    clip: float = 0.0,
    forgets: int | None = None,
) -> list[Tensor]:
    """The weights of worker 0 after local updates, by plain loops; ``forgets``: whose inner state is lost at first."""
    server = net()
    _, outside = inner_and_outer(server, outer)
    models = [net() for _ in range(workers)]
    inside = [inner_and_outer(model)[0] for model in models]
    for sync, start in enumerate(range(0, STEPS, PERIOD)):
        stop = min(start + PERIOD, STEPS)
        for i, model in enumerate(models):
            learn(model, inside[i], start, stop, i)
        if stop - start < PERIOD:
            break
        chosen = taking(sync) if taking else list(range(workers))
        deltas = []
        for i in chosen:
            own = [s.detach() - p.detach() for s, p in zip(server.parameters(), models[i].parameters(), strict=True)]
            norm = torch.cat([d.flatten() for d in own]).norm()
            deltas.append([d * (clip / norm) if clip and norm > clip else d for d in own])
        for p, *own in zip(server.parameters(), *deltas, strict=True):
            p.grad = torch.stack(own).mean(0)
        outside.step()
        if forgets is not None and sync == 0:
            inside[forgets].state.clear()
        for model in models:
            model.load_state_dict(server.state_dict())
    return [p.detach().clone() for p in models[0].parameters()]
