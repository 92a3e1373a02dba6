# not run: needs `pip install "polyak[federated]"`; `flwr run examples/flower` runs it
"""What server and nodes share: the rule, the model, the data."""

from functools import lru_cache

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from polyak.federated import rules

RULE = rules.get("scaffold_m")(local_steps=10, local_lr=0.1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


@lru_cache
def loader(part: int, parts: int) -> DataLoader:
    """A part of the digits, sorted by kind: the first has zeros, the last nines."""
    digits = load_digits()
    rows = torch.as_tensor(digits.target).argsort(stable=True).tensor_split(parts)[part]
    inputs = torch.as_tensor(digits.data, dtype=torch.float32)[rows] / 16
    return DataLoader(TensorDataset(inputs, torch.as_tensor(digits.target)[rows]), batch_size=32)


def accuracy(model: nn.Module, data: DataLoader) -> float:
    inputs, targets = data.dataset.tensors
    with torch.no_grad():
        return float((model(inputs).argmax(1) == targets).float().mean())
