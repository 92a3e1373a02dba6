"""What an optimizer knows of the layers whose weights it steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from polyak.optim.engine.layers import UNDERSTOOD, find_layers
from polyak.optim.engine.taps import Taps


class Listens:
    """An optimizer whose rules may read what flows through layers."""

    taps: ClassVar[tuple[type[nn.Module], ...]] = UNDERSTOOD
    """The layers that :meth:`tap` listens to."""

    _taps: Taps | None = None

    def tap(self, module: nn.Module, exclude: Sequence[str] = (), scaler: torch.amp.GradScaler | None = None) -> None:
        """Listen to the layers of a module from now on, for chains whose rules read what flows through them.

        Args:
            module: the module; its ``nn.Linear`` and ``nn.Conv2d`` layers whose weights are trained. Of a
                DistributedDataParallel module, itself, the rows of all ranks are read: in step() and in
                diagnostics(), which every rank must call then.
            exclude: patterns of names of layers to leave alone.
            scaler: the GradScaler that scales the loss, if one does.

        Raises:
            ValueError: no such layer, or one that is shared or not understood; names it, and nothing has changed.
        """
        layers = find_layers(module, exclude, type(self).__name__, self.taps)
        if self._taps is not None:
            self._taps.remove()
        self._taps = Taps(layers, scaler, module.process_group if isinstance(module, DistributedDataParallel) else None)
