"""Small federations for tests: a network, clients with data of their own, and a rule."""

from typing import Any

import torch
from torch import Tensor, nn

from polyak.federated import InProcess
from polyak.federated.rules import FederatedRule

Data = dict[int, tuple[Tensor, Tensor]]


def data(clients: int = 5, alike: bool = False, size: int = 12, features: int = 4) -> Data:
    """Inputs and targets of each client; of different sizes unless they are alike."""
    generator = torch.Generator().manual_seed(3)
    found = {}
    for i in range(clients):
        n = size if alike else size + 3 * i
        x = torch.randn(n, features, dtype=torch.float64, generator=generator)
        found[i] = (x, torch.randint(3, (n,), generator=generator))
    return dict.fromkeys(found, found[0]) if alike else found


def network(norm: bool = False, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(6)] if norm else []
    layers = [nn.Linear(4, 6), *middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 3)]
    return nn.Sequential(*layers).double()


def federation(rule: FederatedRule, clients: Data | None = None, model: nn.Module | None = None, **k: Any) -> InProcess:
    generator = torch.Generator().manual_seed(1)
    k = {"batch_size": 4, "generator": generator, **k}
    return InProcess(rule, model or network(), clients or data(), **k)


def apart(a: InProcess, b: InProcess, *names: str) -> float:
    """The largest difference of the servers' sets, all those that both have or some."""
    one, other = a.state.sets, b.state.sets
    chosen = names or tuple(one.keys() & other.keys())
    return max([float((one[s][n] - other[s][n]).abs().max()) for s in chosen for n in one[s]] or [0.0])
