"""Three problems of drawn data, each with one difficulty: gradient spikes, a long memory, plateaus.

The data are drawn once, the same always, and a seed decides the model and the order of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyak.lab.builtin.common import NUMBERS, Rows, Task, divide, epoch, on_rows
from polyak.lab.problems import Problem

SPIKED, SMALLEST, TAIL = 0.05, 10.0, 1.2  # share of spiked batches, least spike, exponent of the tail
DELAY, SYMBOLS, LENGTH = 8, 4, 24
SIDE, DEPTH = 16, 6


def _teacher(inputs: int, width: int) -> nn.Module:
    """A fixed random network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 1)).requires_grad_(False)


def spike(generator: torch.Generator) -> float:
    """What is wrong with all targets of a batch: nothing, or for some a draw with Pareto's tail, of either sign.

    Its size has a mean, but with an exponent below 2 no variance.
    """
    chosen, sign, size = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    if chosen >= SPIKED:
        return 0.0
    magnitude: float = SMALLEST * (1 - size) ** (-1 / TAIL)
    return magnitude if sign < 0.5 else -magnitude


def heavy_tail() -> Problem:
    """Regression in which a few batches have gradients that are larger than the others by orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3000, 16, generator=generator)
    clean = _teacher(16, 32)(inputs)
    clean = (clean - clean.mean()) / clean.std()
    targets = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    data = divide((inputs, targets), {"train": 2000, "validation": 500, "test": 500})
    plain = on_rows(
        "heavy-tail",
        data,
        NUMBERS,
        lambda: nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)),
        batch=32,
        steps=1000,
        target=0.16,
        description=f"Regression in which {SPIKED:.0%} of the batches have gradients of wrong targets, off by 10 or "
        f"more (Pareto's tail, exponent {TAIL}): the noise of the gradient has no variance.",
    )

    def train_batches(seed: int) -> Iterator[tuple[Tensor, Tensor, float]]:
        generator = torch.Generator().manual_seed(seed)
        for x, y in epoch(data["train"], 32, generator):
            yield x, y, spike(generator)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, float]) -> Tensor:
        x, y, wrong = batch
        outputs: Tensor = model(x)
        # The gradient is that of targets off by `wrong`. The value stays the loss of the right targets, so that a
        # curve can be read and a spike is not taken for a run that diverged.
        return F.mse_loss(outputs, y) + 2 * wrong * (outputs - outputs.detach()).mean()

    return replace(plain, train_batches=train_batches, loss=loss)


class Recurrent(nn.Module):
    """A gated recurrent net that answers at each place from DELAY on."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, width)
        self.memory = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, sequences: Tensor) -> Tensor:
        """Logits (batch, places, symbols)."""
        states, _ = self.memory(self.symbols(sequences))
        logits: Tensor = self.head(states[:, DELAY:])
        return logits


def _place_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def _place_surprise(outputs: Tensor, targets: Tensor) -> Tensor:
    losses: Tensor = F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")
    return losses.mean(dim=1)


def delay_k() -> Problem:
    """Say again what was heard DELAY symbols ago; who remembers nothing can only guess."""
    sequences = torch.randint(SYMBOLS, (5000, LENGTH), generator=torch.Generator().manual_seed(0))
    rows: Rows = (sequences, sequences[:, :-DELAY])
    return on_rows(
        "delay-k",
        divide(rows, {"train": 4000, "validation": 500, "test": 500}),
        Task("cross-entropy, nats", False, _place_loss, _place_surprise),
        Recurrent,
        batch=64,
        steps=400,
        target=0.2,
        description=f"A gated recurrent net of 25 thousand parameters that repeats random symbols (of {SYMBOLS}) "
        f"{DELAY} places later; without memory nothing is better than ln {SYMBOLS} = 1.386.",
    )


def _deep_linear() -> nn.Module:
    """A product of square matrices that start small, so that training passes one saddle after the other."""
    layers = [nn.Linear(SIDE, SIDE, bias=False) for _ in range(DEPTH)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.5 / SIDE**0.5)
    return nn.Sequential(*layers)


def deep_linear() -> Problem:
    """A deep linear net learns a matrix, one singular value at a time."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(SIDE, SIDE, generator=generator))[0] for _ in range(2))
    values = torch.tensor([4.0, 2.0, 1.0, 0.5])
    inputs = torch.randn(1500, SIDE, generator=generator)
    targets = inputs @ (left[:, :4] * values) @ right[:4]
    targets = targets / targets.std() + 0.1 * torch.randn(targets.shape, generator=generator)
    return on_rows(
        "deep-linear",
        divide((inputs, targets), {"train": 1000, "validation": 250, "test": 250}),
        NUMBERS,
        _deep_linear,
        batch=100,
        steps=600,
        target=0.011,
        description=f"A product of {DEPTH} matrices learns a matrix of rank 4: plateaus, with a fall for each singular "
        "value; the error counts in units of the variance, of which 0.01 is noise.",
    )
