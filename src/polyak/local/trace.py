"""Run a small batch through a chain of layers once, and change nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from polyak.local.measure import ActivationMeter
from polyak.teachers.batchnorm import buffers_kept


@dataclass(frozen=True)
class Trace:
    """What a small batch met on its way through the units of a chain.

    Attributes:
        outputs: the output of each unit.
        saved: bytes that each unit saves for backward, without those that the unit before holds anyway.
        shared: bytes of the input that both a unit and the one before save: what a cut between them costs.
        held: whether each unit saves its own output.
    """

    outputs: tuple[Tensor, ...]
    saved: tuple[int, ...]
    shared: tuple[int, ...]
    held: tuple[bool, ...]


@contextmanager
def undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """Run a model in a mode, then put back its buffers, the mode of every module and the random number generators."""
    modes = {m: m.training for m in model.modules()}
    devices = sorted({t.device.index for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"})
    model.train(training)
    try:
        with buffers_kept(model, always=True), torch.random.fork_rng(devices):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def trace(units: Sequence[nn.Module], names: Sequence[str], example: Tensor) -> Trace:
    """Run the units one after the other, each apart, so that memory for more than one is never needed.

    Raises:
        ValueError: if a unit refuses the output of the one before, or returns something else than a tensor; names it.
    """
    outputs: list[Tensor] = []
    saved: list[int] = []
    shared: list[int] = []
    held = [False]
    fixed = [t for unit in units for t in (*unit.parameters(), *unit.buffers())]
    x = example
    for unit, name in zip(units, names, strict=True):
        try:
            out, meter, x = metered(unit, x, fixed, inside=bool(outputs))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            before = "the network's input" if not outputs else f"the output of {names[len(outputs) - 1]}"
            raise ValueError(f"{name} refuses {before}, of shape {tuple(x.shape)}: {error}") from error
        if not isinstance(out, Tensor):
            raise ValueError(f"{name} must return one tensor, got {type(out).__name__}")
        shared.append(common(meter, x, held[-1]))
        saved.append(meter.current - shared[-1])
        held.append(meter.holds(out))
        x = out.detach()
        del out
        outputs.append(x)
    return Trace(tuple(outputs), tuple(saved), tuple(shared), tuple(held[1:]))


def metered(unit: nn.Module, x: Tensor, fixed: Sequence[Tensor], inside: bool) -> tuple[Any, ActivationMeter, Tensor]:
    """Run a unit; its output, the meter of what it saves as long as that lives, and the input that it was given.

    Args:
        unit: the unit.
        x: its input.
        fixed: parameters and buffers.
        inside: whether the unit is inside of a network, where its input asks for a gradient.
    """
    x = _differentiable(x) if inside else x
    with torch.enable_grad(), ActivationMeter(fixed) as meter:
        return unit(x), meter, x


def common(meter: ActivationMeter, x: Tensor, held: bool) -> int:
    """Bytes of the input ``x`` that a metered unit saves and, if ``held``, the unit before as well."""
    return x.untyped_storage().nbytes() if held and meter.holds(x) else 0


def _differentiable(x: Tensor) -> Tensor:
    """A copy that asks for a gradient, as inside a network; no leaf, so that a layer may change it in place."""
    with torch.enable_grad():
        return x.clone().requires_grad_() * 1 if x.is_floating_point() else x


class SingleValueNorms:
    """Finds the batch normalizations that see one value a sample: a batch of one leaves them nothing to average."""

    def __init__(self, *roots: nn.Module) -> None:
        self.found: list[nn.Module] = []
        self._handles: list[RemovableHandle] = []
        for root in roots:
            for module in root.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    self._handles.append(module.register_forward_pre_hook(self._see))

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if x.numel() == x.shape[0] * x.shape[1] and module not in self.found:
            self.found.append(module)

    def __enter__(self) -> SingleValueNorms:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
