"""What comes into an optimizer: parameters at its construction, and at a step what enters it by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from polyak.optim.engine.chain import Chain
from polyak.optim.engine.context import TAPPED
from polyak.optim.engine.losses import loss_of_step
from polyak.optim.engine.member import holds_nothing, local, name_of
from polyak.optim.engine.rule import Options
from polyak.optim.engine.sharding import found_anywhere
from polyak.optim.engine.taps import Taps


class Reads(Protocol):
    """What is asked of an optimizer."""

    param_groups: list[dict[str, Any]]
    average_loss: bool

    def chain_of(self, group: Options) -> Chain:
        """The chain that a group runs."""

    def measure(self) -> dict[str, Tensor]:
        """What the optimizer finds itself before a step, by name."""


def inputs_of(optimizer: Reads, taps: Taps | None, loss: float | Tensor | None) -> dict[str, Any]:
    """What enters a step by name; refuses what is read and not there, before anything has moved."""
    owner = type(optimizer).__name__
    wanted = {name for group in optimizer.param_groups for name in optimizer.chain_of(group).named}
    if not wanted:
        return {}
    if wanted & set(TAPPED) and taps is None:
        raise RuntimeError(f"{owner} reads what flows through layers: call tap(model) before the passes")
    tapped: dict[str, Any] = {}
    if taps is not None and wanted & set(TAPPED):  # under DDP it asks all ranks
        tapped |= taps.by_name()
        taps.check_seen(_reading_layers(optimizer), tapped[TAPPED[0]])
    if wanted - {"loss", *TAPPED}:
        tapped |= optimizer.measure()
    if missing := sorted(wanted - {"loss", *TAPPED} - set(tapped)):
        raise RuntimeError(f"{owner} reads {missing[0]!r}, and its measure() does not find it")
    if "loss" not in wanted:
        return {**tapped}
    if loss is None:
        raise RuntimeError(f"{owner} reads the loss: call step(loss=loss), or step(closure), or set_loss(loss) before")
    device = next((p.device for group in optimizer.param_groups for p in group["params"]), torch.device("cpu"))
    return {**tapped, "loss": loss_of_step(loss, device, optimizer.average_loss, owner)}


def _reading_layers(optimizer: Reads) -> Iterator[tuple[str, Tensor]]:
    """Names and weights of this step whose chains read what flows through layers."""
    for index, group in enumerate(optimizer.param_groups):
        if optimizer.chain_of(group).reads_layers:
            listed = [(i, p) for i, p in enumerate(group["params"]) if p.grad is not None]
            yield from ((name_of(group, index, i), p) for i, p in listed)


def is_request_for_state(groups: Sequence[dict[str, Any]]) -> bool:
    """Whether a first step is the one that torch.distributed.checkpoint makes to have the state: it counts nothing.

    It comes with lr 0 and gradients that are all zero.
    """
    rates = [group["lr"] for group in groups if "lr" in group]
    if not rates or any(float(lr) != 0 for lr in rates):
        return False
    listed = [p for group in groups for p in group["params"]]
    if any(g.layout is not torch.strided or holds_nothing(g) for p in listed if (g := p.grad) is not None):
        return False
    # a rank whose part is zero, or has no gradient, must not leave the others waiting for its sums
    return not found_anywhere(listed, [p.grad is not None and bool(local(p.grad).any()) for p in listed])[1]


def materialized(params: ParamsT, owner: str) -> Any:
    """The parameters as a list, each group's too; refuses none at all."""
    if isinstance(params, Tensor):
        raise TypeError(f"{owner}: params must be an iterable of tensors, not one tensor; wrap it in a list")
    listed = list(params)
    if not listed:
        raise ValueError(f"{owner} got an empty parameter list")
    if all(isinstance(p, dict) for p in listed) and not any(True for g in listed for _ in _listed(g)):
        warnings.warn(f"{owner}: all parameter groups are empty", UserWarning, stacklevel=4)
    return listed


def refuse_unfit(tensors: Sequence[Any], owner: str) -> None:
    """Refuse what one group lists if a parameter is there twice, or is complex."""
    if len({id(p) for p in tensors}) != len(tensors):
        raise ValueError(f"{owner}: a parameter appears twice in one group")
    for i, p in enumerate(tensors):
        if isinstance(p, Tensor) and p.is_complex():
            raise TypeError(f"{owner}: parameter {i} is complex; pass torch.view_as_real(parameter) instead")


def _listed(group: Any) -> Iterator[Any]:
    params = group["params"]
    if isinstance(params, Tensor):
        return iter([params])
    if not isinstance(params, (list, tuple)):
        params = group["params"] = list(params)
    return iter(params)
