"""One small training for every method and driver: tied, frozen and late weights, a convolution, parts of batches."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

import polyak.optim
from polyak.optim.drivers import CMS, DGD, Delayed, LowRank, PeriodicLoRA, XGrad
from tests.optim import scenario, training
from tests.optim.layerwise import nets

STEPS, LATE = 5, 2
LAYERED = polyak.optim.names(layered=True)
DRIVERS = ("xgrad", "cms", "dgd", "delayed", "periodic_lora")
READS_LAYERS = (*LAYERED, "dgd")
"""They take the model, and no weight that is a layer's and something else's too."""
NAMES = (*polyak.optim.names(), *LAYERED, *DRIVERS)
QUICK = ("adamw", "adan", "muon", "momo", "smmf", "mkor", *DRIVERS)
"""One of each kind: elementwise, sums, matrices, the loss, shapes of its own, layers; and the drivers."""


class Net(nn.Module):
    """Every kind of weight. Over two ranks 11 rows are 6 and 5, and one row is 1 and none."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.mix = nn.Linear(4, 6)
        self.base = nn.Parameter(torch.randn(6, 6) / 3, requires_grad=False)
        self.a, self.b = nn.Parameter(torch.randn(2, 6) / 3), nn.Parameter(torch.randn(6, 2) / 3)
        self.still = nn.Parameter(torch.randn(6), requires_grad=False)
        self.gate = nn.Parameter(torch.randn(1, 6))
        self.late, self.late_gain = nn.Parameter(torch.randn(6, 6) / 3), nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 11)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        hidden = self.mix(self.norm(self.conv(x)).tanh().mean((2, 3))) + self.embed(tokens) * self.gate
        hidden = hidden + hidden @ (self.base + self.b @ self.a).T + self.still
        found: Tensor = self.head((hidden @ self.late * self.late_gain).tanh())
        return found


def net(name: str, dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(0)
    return Net(tied=name not in READS_LAYERS).to(dtype)


def options(name: str) -> dict[str, Any]:
    """Every term of the method takes part, at a rate at which the training is calm."""
    return {"lr": 0.01, "weight_decay": 0.05, **scenario.OPTIONS.get(name, {}), **training.OPTIONS.get(name, {})}


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices and the rest, each weight once; the late ones are not among them."""
    found: dict[str, list[tuple[str, nn.Parameter]]] = {"matrix": [], "rest": []}
    for name, p in model.named_parameters():
        if p.requires_grad and not name.startswith("late"):
            found["matrix" if name in ("conv.weight", "mix.weight") else "rest"].append((name, p))
    return [{"params": listed, "role": role} for role, listed in found.items()]


class Run:
    """A model and what trains it.

    Args:
        name: of :data:`NAMES`.
        model: :class:`Net`, or what a wrapper of torch made of it.
        execution: the optimizer's.
        scaler: the GradScaler of the loss, if there is one.
    """

    def __init__(
        self, name: str, model: nn.Module, execution: str = "eager", scaler: torch.amp.GradScaler | None = None
    ) -> None:
        self.name, self.model, self.scaler = name, model, scaler
        self.net: Any = model.module if isinstance(model, DistributedDataParallel) else model
        self.periodic: PeriodicLoRA | None = None
        self.target, self.optimizer = self._made(execution)

    def _made(self, execution: str) -> tuple[Any, torch.optim.Optimizer]:
        """What is stepped, and the optimizer in it."""
        if self.name in LAYERED:
            own = polyak.optim.create(
                self.name, self.model, execution=execution, scaler=self.scaler, **nets.OPTIONS[self.name]
            )
            return own, own
        if self.name == "dgd":
            dgd = DGD(self.model, lr=0.05, momentum=0.5, scaler=self.scaler)
            return dgd, dgd
        method = "adamw" if self.name in DRIVERS else self.name
        inner = polyak.optim.get(method)(groups(self.net), **options(method), execution=execution)
        if self.name == "xgrad":
            return XGrad(inner), inner
        if self.name == "cms":
            return CMS(inner, [1, 2]), inner
        if self.name == "delayed":
            return Delayed(inner, 1), inner
        if self.name == "periodic_lora":
            layer = LowRank("base", self.net.base, self.net.a, self.net.b, 1.0)
            self.periodic = PeriodicLoRA([layer], inner, unload_every=2, momentum=0.0)
        return inner, inner

    def train(self, parts: list[slice], memory_format: torch.memory_format = torch.contiguous_format) -> None:
        """All steps, each over the ``parts`` of its batch, whose losses count alike."""
        for step in range(STEPS):
            self.step(step, parts, memory_format)

    def step(
        self, step: int, parts: list[slice], memory_format: torch.memory_format = torch.contiguous_format,
        spoilt: bool = False,
    ) -> None:  # fmt: skip
        """One step; ``spoilt``: with an infinite loss."""
        if step == LATE:
            self._add_late()
        self.optimizer.zero_grad()
        self.model.zero_grad()
        ahead = self.target.predicted() if isinstance(self.target, XGrad) else nullcontext()
        with ahead:
            total = sum(
                self._pass(step, part, len(parts), i == len(parts) - 1, memory_format, spoilt)
                for i, part in enumerate(parts)
            )
        if step < LATE and self.name in READS_LAYERS:
            self.net.late.grad = self.net.late_gain.grad = None
        given = {} if self.name == "delayed" else {"loss": total}
        if self.scaler is None:
            self.target.step(**given)
        else:
            self.scaler.step(self.optimizer if self.name == "xgrad" else self.target, **given)
            self.scaler.update()
        if self.periodic is not None and not spoilt:
            self.periodic.step()

    def _add_late(self) -> None:
        """What takes parameters is given the late ones now; what takes the model has had no gradients of them yet."""
        if self.name in READS_LAYERS:
            return
        more = {"period": 1} if self.name == "cms" else {}
        for name, role in (("late", "matrix"), ("late_gain", "rest")):
            self.optimizer.add_param_group({"params": [(name, getattr(self.net, name))], "role": role, **more})

    def _pass(
        self, step: int, part: slice, parts: int, last: bool, memory_format: torch.memory_format, spoilt: bool
    ) -> Tensor:
        x, tokens, labels = batch(step)
        weight = self.net.conv.weight
        x = x.to(weight.dtype).contiguous(memory_format=memory_format)
        low = torch.autocast("cpu", torch.bfloat16, enabled=weight.dtype == torch.float32)
        with self._synchronized(last):
            with low:
                found = self.model(x[part], tokens[part])
            loss = nn.functional.cross_entropy(found.to(weight.dtype), labels[part]) / parts
            scaled = loss * torch.inf if spoilt else loss
            (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
        return loss.detach()

    def _synchronized(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged with the last part of a batch."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) and not last else nullcontext()


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(11, (8,), generator=generator), torch.randint(11, (8,), generator=generator)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights by name, gathered where they are sharded."""
    return training.weights(model)
