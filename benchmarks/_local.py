"""Local learning: the methods compared, the data, and one training run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from polyak.local import DGL, MAN, AugLocal, Auxiliary, Greedy, InfoPro, LocalNetwork, local_backward

# "man", "trained layer only" and "EMA only" differ in nothing but what stands between the block and DGL's head.
METHODS: dict[str, Auxiliary | None] = {
    "end-to-end": None,
    "greedy": Greedy(),
    "dgl": DGL(),
    "infopro": InfoPro(),
    "auglocal": AugLocal(2),
    "man": MAN(),
    "man++": MAN(variant="scale"),
    "trained layer only": MAN(variant="trained"),
    "EMA only": MAN(variant="average"),
    "man with linear head": MAN(Greedy()),
}
RECORD = 1 + 3 * 32 * 32  # label, then red, green and blue


@dataclass(frozen=True)
class Data:
    """Images in [0, 1], float32, and labels; for training and for the test."""

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.y.max()) + 1


def digits32() -> Data:
    """scikit-learn's 1,797 digits, enlarged to 32 x 32 x 3; 1,297 for training and 500 for the test."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    small = torch.tensor(found.images, dtype=torch.float32)[order, None] / 16
    x = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1).contiguous()
    y = torch.tensor(found.target)[order]
    return Data("digits32", x[500:], y[500:], x[:500], y[:500])


def cifar10(folder: Path) -> Data:
    """CIFAR-10 in its own binary format: ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``.

    Raises:
        ValueError: if a file is missing, or does not consist of whole records with labels below 10.
    """
    train = [_records(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
    x_test, y_test = _records(folder / "test_batch.bin")
    return Data("cifar10", torch.cat([x for x, _ in train]), torch.cat([y for _, y in train]), x_test, y_test)


def _records(path: Path) -> tuple[Tensor, Tensor]:
    if not path.exists():
        raise ValueError(f"{path.parent} must hold CIFAR-10 in its binary format, but {path.name} is missing")
    raw = np.fromfile(path, dtype=np.uint8)
    if len(raw) == 0 or len(raw) % RECORD:
        raise ValueError(f"{path} must consist of records of {RECORD} bytes, got {len(raw)} bytes")
    records = torch.from_numpy(raw).view(-1, RECORD)
    labels = records[:, 0].long()
    if int(labels.max()) > 9:
        raise ValueError(f"{path} must have labels from 0 to 9, got {int(labels.max())}")
    return records[:, 1:].view(-1, 3, 32, 32).float() / 255, labels


class Step:
    """One full iteration of a method, optimizer included; a call gives the loss of the whole network.

    Attributes:
        network: what is trained: the model itself where there is no method.
        optimizer: of all that is trained.
    """

    def __init__(self, model: nn.Module, method: Auxiliary | None, lr: float, **cut: Any) -> None:
        self.network = model if method is None else LocalNetwork(model, auxiliary=method, **cut)
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def __call__(self, x: Tensor, y: Tensor) -> float:
        self.optimizer.zero_grad()
        if isinstance(self.network, LocalNetwork):
            loss = local_backward(self.network, x, y).loss
        else:
            loss = F.cross_entropy(self.network(x), y)
            loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def batches(x: Tensor, y: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order, whole batches only."""
    for rows in torch.randperm(len(y), generator=generator).split(size):
        if len(rows) == size:
            yield x[rows.to(x.device)], y[rows.to(x.device)]


def train(
    model: nn.Module, method: Auxiliary | None, data: Data, seed: int, epochs: int, batch: int, lr: float, **cut: Any
) -> dict[str, float]:
    """Train; test error in per cent, last training loss, seconds. Cosine learning rate over all steps."""
    example = data.x[:2]
    step = Step(model, method, lr, **({} if method is None else {"example": example, **cut}))
    generator = torch.Generator().manual_seed(seed)
    total, done, losses = epochs * (len(data.y) // batch), 0, [math.nan]
    start = time.perf_counter()
    for _ in range(epochs):
        losses = []
        for x, y in batches(data.x, data.y, batch, generator):
            step.optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * done / total)) / 2
            losses.append(step(x, y))
            done += 1
    seconds = time.perf_counter() - start
    return {"error": error(model, data.x_test, data.y_test), "loss": sum(losses) / len(losses), "seconds": seconds}


@torch.no_grad()
def error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Per cent of samples that the plain network gets wrong."""
    model.eval()
    right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(256), y.split(256), strict=True))
    model.train()
    return 100 * (1 - right / len(y))
