"""What the built-in problems share: rows that are divided, batches of them, and how outputs are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyak.lab.problems import Problem

Rows = tuple[Tensor, Tensor]  # inputs and targets
Data = dict[str, Rows]  # of each split

CHUNK = 500  # rows that are judged at a time, so that a large test split needs little memory


@dataclass(frozen=True)
class Task:
    """What is asked of a model's outputs.

    Args:
        metric: the mean of the scores, in words.
        higher_is_better: whether a higher score is better.
        loss: the loss of outputs and targets, a tensor with one element.
        scores: the score of each row, a vector.
    """

    metric: str
    higher_is_better: bool
    loss: Callable[[Tensor, Tensor], Tensor]
    scores: Callable[[Tensor, Tensor], Tensor]


def _right(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.argmax(dim=1) == targets


def _surprise(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(dim=1)


CLASSES = Task("accuracy", True, F.cross_entropy, _right)
PROBABILITIES = Task("cross-entropy, nats", False, F.cross_entropy, _surprise)
NUMBERS = Task("mean squared error", False, F.mse_loss, _squared_error)


def divide(rows: Rows, sizes: Mapping[str, int]) -> Data:
    """Shuffle the rows, the same way always, and cut them into splits of these sizes."""
    inputs, targets = rows
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    cuts = zip(sizes, order.split(list(sizes.values())), strict=True)
    return {split: (inputs[chosen], targets[chosen]) for split, chosen in cuts}


def standardized(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Columns with mean 0 and variance 1 on the training split; the others are never looked at for it."""
    mean, deviation = columns["train"].mean(dim=0), columns["train"].std(dim=0)
    return {split: (values - mean) / deviation for split, values in columns.items()}


def epoch(rows: Rows, batch: int, generator: torch.Generator) -> Iterator[Rows]:
    """Every row once, in random order, in whole batches only."""
    inputs, targets = rows
    for chosen in torch.randperm(len(targets), generator=generator).split(batch):
        if len(chosen) == batch:
            yield inputs[chosen], targets[chosen]


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are, and so where the rows have to go that it is judged on."""
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


def on_rows(
    name: str,
    data: Data,
    task: Task,
    model: Callable[[], nn.Module],
    *,
    batch: int,
    steps: int,
    target: float | None,
    description: str,
) -> Problem:
    """The problem of fitting a model to rows."""

    def train_batches(seed: int) -> Iterator[Rows]:
        return epoch(data["train"], batch, torch.Generator().manual_seed(seed))

    def loss(model: nn.Module, rows: Rows) -> Tensor:
        inputs, targets = rows
        return task.loss(model(inputs), targets)

    def evaluate(model: nn.Module, split: str) -> float:
        inputs, targets = data[split]
        place = device_of(model)
        chunks = zip(inputs.split(CHUNK), targets.split(CHUNK), strict=True)
        scores = [task.scores(model(x.to(place)), y.to(place)) for x, y in chunks]
        return torch.cat(scores).double().mean().item()

    return Problem(
        name=name,
        build_model=lambda seed: model(),
        train_batches=train_batches,
        loss=loss,
        evaluate=evaluate,
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        target=target,
        steps=steps,
        description=description,
    )
