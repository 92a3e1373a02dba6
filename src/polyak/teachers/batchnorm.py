"""BatchNorm's statistics: for averaged weights, which have never seen a batch, and put back after a failure."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Forward = Callable[[nn.Module, Any], Any]


@torch.no_grad()
def update_bn(model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> None:
    """Set BatchNorm's running statistics to the means over some batches.

    Every layer's statistics are reset and made with a cumulative average; momenta, and which modules are in training
    mode, are as before in the end, also after an exception. A model without BatchNorm is left alone and the batches
    are not read.

    Args:
        model: the model, such as ``ema.module``.
        batches: tensors, or tuples or lists whose first element is the model's input; on the model's device.
        forward: ``forward(model, batch)`` runs the model on a batch of another kind.

    Raises:
        ValueError: if there was no batch. The statistics have been reset then.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return
    momenta, modes = [layer.momentum for layer in layers], [(m, m.training) for m in model.modules()]
    run = forward or _on_first
    seen = 0
    try:
        model.train()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        for batch in batches:
            run(model, batch)
            seen += 1
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode
    if seen == 0:
        raise ValueError("batches must hold at least one batch, got none")


def _on_first(model: nn.Module, batch: Tensor | tuple[Tensor, ...] | list[Tensor]) -> Any:
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


@contextmanager
def buffers_kept(*models: nn.Module, always: bool = False) -> Iterator[None]:
    """Put the buffers of models back to what they were and held, if what is done inside fails, or ``always``.

    A forward may fill buffers, put others in their place, or make some.
    """
    tables = [(table, dict(table)) for model in models for m in model.modules() for table in (m._buffers,)]
    lasting = [(m, set(m._non_persistent_buffers_set)) for model in models for m in model.modules()]
    before = {buffer: buffer.clone() for model in models for buffer in model.buffers()}
    failed = True
    try:
        yield
        failed = False
    finally:
        if failed or always:
            for table, entries in tables:
                table.clear()
                table.update(entries)
            for module, names in lasting:
                module._non_persistent_buffers_set = names
            with torch.no_grad():
                for buffer, value in before.items():
                    buffer.copy_(value)


def warn_if_overwritten(averaged: list[nn.Module]) -> bool:
    """Whether averaged models collect statistics themselves, which copies would overwrite; if so, say it."""
    for module in (m for model in averaged if model.training for m in model.modules()):
        if module.training and getattr(module, "running_mean", None) is not None:
            warnings.warn(
                "the averaged model is in training mode with buffers='copy': the statistics that it collects are "
                "overwritten at each update; take buffers='keep', or ema.module.eval()",
                RuntimeWarning,
                stacklevel=5,
            )
            return True
    return False
