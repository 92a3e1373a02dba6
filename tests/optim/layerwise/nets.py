"""Small models and trainings of layer-wise methods."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import polyak.optim
from polyak.optim import LayerMethod

NAMES = polyak.optim.names(layered=True)
OPTIONS: dict[str, dict[str, Any]] = {
    "mkor": {"lr": 0.05, "inv_freq": 2, "weight_decay": 0.01},
    "mkor_h": {"lr": 0.05, "inv_freq": 2, "weight_decay": 0.01, "min_steps": 50},
    "singd": {"lr": 0.02, "T": 2, "structures": ("hierarchical15_15", "triltoeplitz"), "weight_decay": 0.01},
    "ikfac": {"lr": 0.02, "T": 2, "structures": ("diagonal", "tril"), "weight_decay": 0.01, "aux": "adamw"},
    "sngd": {"lr": 0.02, "T": 1},
}


class Net(nn.Module):
    """A convolution, an in-place activation, a norm, and linear layers with and without bias, one over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding="valid")
        self.norm = nn.LayerNorm(4)
        self.mix = nn.Linear(4, 5, bias=False)
        self.out = nn.Linear(5, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu_(self.conv(x)).flatten(2).movedim(1, -1)
        result: Tensor = self.out(self.mix(self.norm(hidden)).tanh_().mean(1))
        return result


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 2, 7, 7, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (8,), generator=generator)


def loss_of(model: nn.Module, step: int, part: slice = slice(None)) -> Tensor:
    x, y = batch(step)
    return nn.functional.cross_entropy(model(x[part]), y[part])


def make(name: str, model: nn.Module, **more: Any) -> LayerMethod:
    optimizer = polyak.optim.create(name, model, **{"execution": "batched", **OPTIONS[name], **more})
    assert isinstance(optimizer, LayerMethod)
    return optimizer


def train(
    model: nn.Module, optimizer: LayerMethod, first: int, last: int, part: slice = slice(None),
    before: Callable[[int], None] = lambda step: None,
) -> None:  # fmt: skip
    for step in range(first, last):
        optimizer.zero_grad()
        loss = loss_of(model, step, part)
        loss.backward()
        before(step)
        optimizer.step(loss=loss)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): p.detach().clone() for name, p in model.named_parameters()}
