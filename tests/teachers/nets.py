"""Small models of many kinds of tensors, and trainings of them."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

VECTORS = Path(__file__).parents[1] / "vectors"
NAMES = ("matrix", "conv", "vector", "scalar")


def arrays(name: str) -> dict[str, Tensor]:
    """A vector's arrays."""
    import numpy

    return {key: torch.from_numpy(value) for key, value in numpy.load(VECTORS / f"{name}.npz").items()}


def manifest(name: str) -> dict:
    """A vector's hyperparameters."""
    return json.loads((VECTORS / f"{name}.json").read_text())["hyperparameters"]


class Net(nn.Module):
    """A tied weight, BatchNorm, a frozen parameter, a mask, and one tensor that is large."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6, bias=False)
        self.again = nn.Linear(6, 6, bias=False)
        self.again.weight = self.inner.weight
        self.norm = nn.BatchNorm1d(6)
        self.frozen = nn.Parameter(torch.randn(6), requires_grad=False)
        self.wide = nn.Parameter(torch.randn(300, 150) / 100)
        self.register_buffer("mask", torch.tensor([True, False, True]))

    def forward(self, x: Tensor) -> Tensor:
        return self.again(torch.tanh(self.norm(self.inner(x)))) * self.frozen + self.wide.sum()


def net(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        optimizer.zero_grad()
        model(batch(step, next(model.parameters()).dtype)).square().mean().backward()
        optimizer.step()


def wander(model: nn.Module, seed: int) -> None:
    """Move all tensors of a model somewhere else."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            draw = torch.randn(tensor.shape, generator=source, dtype=torch.float64)
            tensor.copy_(draw > 0 if tensor.dtype == torch.bool else (10 * draw).to(tensor.dtype))


def state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a model's tensors, without what modules store beside them."""
    return {name: x.clone() for name, x in model.state_dict().items() if not name.endswith("_extra_state")}


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(got[name], value), name
