"""PeriodicLoRA: low-rank updates are unloaded into the weights they belong to, and begin anew."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from polyak.declare import Paper
from polyak.memory.rounding import round_stochastic
from polyak.optim.drivers.lora import LowRank, check, lora_layers, merged_layer, once
from polyak.optim.engine import views
from polyak.optim.groups import set_option

Keep = Literal["B", "sqrt", "both"]
Init = Literal["kaiming", "gaussian"]
Rounded = Literal["nearest", "stochastic"]
CHOICES: dict[str, tuple[str, ...]] = {"keep": get_args(Keep), "init": get_args(Init), "rounding": get_args(Rounded)}
SCHEDULED = ("lr", "betas", "momentum")
"""Options of groups that learning-rate schedulers drive."""


def unload(
    w: Tensor, a: Tensor, b: Tensor, scale: float, momentum: float, keep: Keep, fresh: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What weight and factors are after an unload: ``(w, a, b)``, as float32 or better.

    ::

        w <- w + (1 - momentum) * scale * b @ a
        momentum = 0:  a <- fresh; b <- 0
        "B":           a <- a; b <- momentum * b
        "sqrt":        a <- sqrt(momentum) * a; b <- sqrt(momentum) * b
        "both":        a <- momentum * a; b <- momentum * b

    ``w + scale * b @ a`` stays what it was, but for "both".
    """
    dtype = torch.promote_types(torch.promote_types(w.dtype, a.dtype), torch.float32)
    w, a, b = w.to(dtype), a.to(dtype), b.to(dtype)
    update = scale * (b.flatten(1) @ a.flatten(1))
    w = w + (1 - momentum) * update.reshape(w.shape)
    if momentum == 0:
        return w, fresh.to(dtype), torch.zeros_like(b)
    on_a = {"B": 1.0, "sqrt": math.sqrt(momentum), "both": momentum}[keep]
    on_b = {"B": momentum, "sqrt": math.sqrt(momentum), "both": momentum}[keep]
    return w, on_a * a, on_b * b


class PeriodicLoRA:
    """PeriodicLoRA (Meng et al., arXiv:2402.16141): training with LoRA in stages, whose sum has a rank that grows.

    ::

        after every stage of unload_every steps, for every adapted layer:
        W <- W + (1 - momentum) * s * B @ A
        A <- a fresh random one; B <- 0   (momentum = 0)
        B <- momentum * B                 (0 < momentum < 1)
        the optimizer forgets A and B, the learning-rate schedule begins anew

    ::

        periodic = PeriodicLoRA(model, optimizer, unload_every=500, scheduler=scheduler)
        ...
        optimizer.step(); scheduler.step(); periodic.step(); optimizer.zero_grad()

    What momentum keeps of A and B is our reading of the paper, which has no code: the function that the model computes
    does not change by an unload. ``keep="both"`` is that of an independent implementation, and changes it. Fresh
    factors come from ``seed`` and the stage, so that all ranks of DistributedDataParallel draw the same, and a resumed
    run the same as one that went on.

    From the first unload on the adapter alone no longer carries what was learned: save the model with its weights.

    Args:
        layers: a model with LoRA layers of peft (see :func:`lora_layers`), or the layers.
        optimizer: any that trains the factors A and B.
        unload_every: steps of a stage, >= 1; None: only by :meth:`unload`, as at the end of an epoch.
        momentum: what of the update is kept for the next stage, in [0, 1).
        keep: which factors shrink, see :func:`unload`; nothing with ``momentum=0``.
        scheduler: of torch.optim; set back to where it is now at every unload. None leaves schedules alone.
        reset_optimizer: delete the optimizer's state of A and B.
        init: of a fresh A: "kaiming" as of linear layers, "gaussian" with deviation 1 / r; read with ``momentum=0``.
        rounding: how a half-precision W is written, "nearest" or "stochastic": the nearest loses what is small.
        seed: of fresh factors and of random rounding.

    Raises:
        ValueError: an argument outside what is allowed, no layers, a weight that is trained too or belongs to two
            layers, factors that do not fit it or that the optimizer does not train.
        TypeError: a weight that is quantized, or a sharded tensor.
    """

    paper = Paper("PeriodicLoRA: Breaking the Low-Rank Bottleneck in LoRA Optimization", 2024, "2402.16141")
    vectors = ("plora-unload",)

    def __init__(
        self,
        layers: nn.Module | Iterable[LowRank],
        optimizer: torch.optim.Optimizer,
        *,
        unload_every: int | None,
        momentum: float = 0.0,
        keep: Keep = "B",
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        reset_optimizer: bool = True,
        init: Init = "kaiming",
        rounding: Rounded = "stochastic",
        seed: int = 0,
    ) -> None:
        if unload_every is not None and not (isinstance(unload_every, int) and unload_every >= 1):
            raise ValueError(f"PeriodicLoRA: unload_every must be a positive integer or None, got {unload_every!r}")
        if not 0 <= momentum < 1:
            raise ValueError(f"PeriodicLoRA: momentum must be in [0, 1), got {momentum!r}")
        for name, value in (("keep", keep), ("init", init), ("rounding", rounding)):
            if value not in CHOICES[name]:
                raise ValueError(f"PeriodicLoRA: {name} must be one of {list(CHOICES[name])}, got {value!r}")
        self.model = layers if isinstance(layers, nn.Module) else None
        self.layers = list(lora_layers(layers) if isinstance(layers, nn.Module) else once(layers))
        check(self.layers, optimizer)
        self.optimizer, self.scheduler, self.reset_optimizer = optimizer, scheduler, reset_optimizer
        self.unload_every, self.momentum, self.keep = unload_every, momentum, keep
        self.init, self.rounding, self.seed = init, rounding, seed
        self.steps = self.stage = 0
        self._start = copy.deepcopy(scheduler.state_dict()) if scheduler is not None else {}
        self._options = [
            {name: _number(group[name]) for name in SCHEDULED if name in group} for group in optimizer.param_groups
        ]

    def step(self) -> bool:
        """Count a step of the optimizer, and unload at the end of a stage; behind the scheduler's step.

        Returns:
            Whether it unloaded.
        """
        self.steps += 1
        if self.unload_every is None or self.steps % self.unload_every:
            return False
        self.unload()
        return True

    @torch.no_grad()
    def unload(self) -> None:
        """End the stage now. Gradients of A and B that are still there are dropped: they belong to the old factors.

        Raises:
            RuntimeError: an adapter is merged into its weight at present, or the weights are predicted ones; nothing
                has changed.
        """
        if self.model is not None and (merged := merged_layer(self.model)):
            raise RuntimeError(f"PeriodicLoRA: the adapter of {merged} is merged; unmerge it before an unload")
        if views.is_predicted(self.optimizer):
            raise RuntimeError("PeriodicLoRA: the weights are predicted ones; restore() them before an unload")
        self.stage += 1
        # the generator takes the lowest 32 bits of its seed
        source = torch.Generator().manual_seed((self.seed * 1_000_003 + self.stage) % 2**32)
        for layer in self.layers:
            fresh = self._fresh(layer.a, source)
            seed = torch.randint(2**62, (), generator=source).to(layer.weight.device)
            with torch.autocast(layer.weight.device.type, enabled=False):
                w = layer.weight.t() if layer.transposed else layer.weight
                new, a, b = unload(w, layer.a, layer.b, layer.scale, self.momentum, self.keep, fresh)
            w.copy_(self._rounded(new, w.dtype, seed))
            layer.a.copy_(a)
            layer.b.copy_(b)
            layer.a.grad = layer.b.grad = None
            if self.reset_optimizer:
                for factor in (layer.a, layer.b):
                    self.optimizer.state.pop(factor, None)
        if self.scheduler is not None:
            self._restart(self.scheduler)

    def _fresh(self, a: Tensor, source: torch.Generator) -> Tensor:
        fresh = torch.empty(a.shape)  # on the CPU and in float32: one draw for all devices and dtypes
        if self.init == "kaiming":
            nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=source)
        else:
            nn.init.normal_(fresh, std=1 / a.shape[0], generator=source)
        return fresh.to(a.device)

    def _rounded(self, value: Tensor, dtype: torch.dtype, seed: Tensor) -> Tensor:
        if dtype.itemsize > 2 or self.rounding == "nearest":
            return value.to(dtype)
        return round_stochastic(value.float().flatten(), dtype, seed).view(value.shape)

    def _restart(self, scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
        scheduler.load_state_dict(copy.deepcopy(self._start))
        for group, options in zip(self.optimizer.param_groups, self._options, strict=False):
            for name, value in options.items():
                set_option(group, name, value)

    def state_dict(self) -> dict[str, Any]:
        """Where in the stage the run is, and where its schedule begins; weights and factors are the model's."""
        return {"steps": self.steps, "stage": self.stage, "scheduler": self._start, "options": self._options}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            ValueError: keys are missing or unknown; nothing has changed.
        """
        if set(state_dict) != (known := set(self.state_dict())):
            raise ValueError(f"PeriodicLoRA: a state has {sorted(known)}, got {sorted(state_dict)}")
        self.steps, self.stage = int(state_dict["steps"]), int(state_dict["stage"])
        self._start, self._options = copy.deepcopy(state_dict["scheduler"]), copy.deepcopy(state_dict["options"])


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
