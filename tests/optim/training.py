"""A model of a few layers whose shards are uneven, empty or large, and its training on one process."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import polyak.optim
from polyak.optim import Optimizer
from polyak.optim.engine.member import SMALL

WIDE = SMALL // 2 + 100  # two rows of it go through a kernel in place, one is gathered
STEPS = 6
IDLE = 2  # the step in which `idle` gets no gradient
OPTIONS: dict[str, dict[str, Any]] = {
    "adan": {"max_grad_norm": 1.0, "lr": 0.02},
    "cadan": {"max_grad_norm": 0.5, "lr": 0.02},
    **{
        name: {"ns_dtype": torch.float64, "aux_lr": 0.01} for name in ("muon", "cmuon", "namo", "namo_d", "hybrid_auon")
    },
    "fismo": {"ns_dtype": torch.float64, "aux_lr": 0.01, "normalize_stats": True, "update_interval": 2},
    "m3": {"ns_dtype": torch.float64, "frequency": 2},
    "nl_delta": {"lr": 1e-4},
    "csgdm": {"lr": 1e-4},
    "sgd_sai": {"lr": 1e-5},
    "spam": {"DeltaT": 4, "warmup_steps": 2, "grad_accu_steps": 2, "threshold": 0.05, "density": 0.5},
    "stable_spam": {"DeltaT": 4},
    "smmf": {"state_storage": "float32"},  # of a sharded tensor memories are not factored
    "random_scaling": {"lr": 1e-3},
    "adaptive_braking": {"lr": 1e-4, "granularity": "filter"},
    "tam": {"lr": 1e-4},
    "sgd": {"momentum": 0.9, "lr": 1e-4},
    "sgdp": {"momentum": 0.9, "nesterov": True, "lr": 1e-4},
}
DECAY = 0.1


class Net(nn.Module):
    """Over two ranks 3 rows are 2 and 1, one row is 1 and none, and `wide` is large on the first only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.gate = nn.Parameter(torch.randn(1, 8))
        self.second = nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(1))
        self.wide = nn.Parameter(torch.randn(3, WIDE) / 100)
        self.idle = nn.Parameter(torch.randn(3, 2))
        self.double()

    def forward(self, x: Tensor, step: int) -> Tensor:
        hidden = torch.tanh(self.first(x)) * (1 + self.gate)
        y = self.second(hidden) * self.scale + self.wide @ torch.linspace(-1, 1, WIDE, dtype=x.dtype)
        return y if step == IDLE else y + self.idle.square().sum(1)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    draw = torch.randn(8, 9, generator=generator, dtype=torch.float64)
    return draw[:, :6], 3 * draw[:, 6:]


def build(method: str, model: nn.Module, execution: str = "batched", **more: Any) -> Optimizer:
    options = {"lr": 0.01, **OPTIONS.get(method, {}), **more}
    return polyak.optim.create(method, model, weight_decay=DECAY, execution=execution, **options)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    first: int = 0,
    last: int = STEPS,
    part: slice = slice(None),
    meddle: Callable[[int], None] | None = None,
) -> None:
    """Steps ``first`` to ``last`` on ``part`` of every batch; ``meddle`` runs between backward and step."""
    for step in range(first, last):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = (model(x[part], step) - y[part]).square().mean()
        loss.backward()
        if meddle is not None:
            meddle(step)
        optimizer.step(**({"loss": loss} if isinstance(optimizer, Optimizer) else {}))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters, gathered where they are sharded."""
    return {
        name.removeprefix("module."): (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
    }


def alone(method: str, first: int = 0, last: int = STEPS, **more: Any) -> dict[str, Tensor]:
    """The weights after training on one process."""
    model = net()
    train(model, build(method, model, **more), first, last)
    return weights(model)


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], rtol: float = 1e-10) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=rtol, atol=rtol * 1e-3, msg=lambda m, n=name: f"{n}: {m}")
