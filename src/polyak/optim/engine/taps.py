"""Taps: what flows through layers, for rules and methods that read it (second-order methods).

A rule says ``inputs=("inputs", "output_gradients")`` and finds both as attributes of its context: for the weight of an
``nn.Linear`` or ``nn.Conv2d`` the matrix (positions, features) of what went into the layer, a convolution's patches
unfolded, and that of the loss's gradients by what came out. Passes between two steps are put one below the other;
:class:`Taps` keeps them.

:class:`LayerTaps` serves methods that want statistics of both, not the matrices, and not at every step.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from polyak.optim.engine.context import TAPPED
from polyak.optim.engine.layers import Layer
from polyak.optim.engine.run import without_autocast


class Taps:
    """Keeps what flows through layers.

    Row ``i`` of both matrices is of the same position of the same use of the layer. A use that no backward pass came
    back to is not there, as in :class:`LayerTaps`.

    Args:
        layers: are listened to, in passes with gradients enabled.
        scaler: the GradScaler by whose scale output gradients are divided.
        ranks: the process group of a DistributedDataParallel module: the rows of all ranks are put one below the other,
            and output gradients are those of the mean of their losses.
    """

    def __init__(self, layers: Sequence[Layer], scaler: torch.amp.GradScaler | None = None, ranks: Any = None) -> None:
        self._heard = LayerTaps(self, scaler, together=lambda a, b: torch.cat([a, b]))
        self._layers, self._ranks = layers, ranks
        for layer in layers:
            self._heard.listen(layer, True)

    def enter(self, layer: Layer, x: Tensor) -> Tensor:
        """The rows that go in, without the 1 for the bias."""
        return x.flatten(0, 1)[:, : layer.inputs - (layer.bias is not None)]

    def leave(self, layer: Layer, gradient: Tensor) -> Tensor:
        """The rows of the gradient by what comes out."""
        return gradient.flatten(0, 1)

    def by_name(self) -> dict[str, Mapping[int, Tensor]]:
        """What was seen since :meth:`clear`, by the ``id`` of the layer's weight.

        Every rank of a DistributedDataParallel module must call it.
        """
        pairs = {id(layer.weight): (seen.entered, seen.left) for layer, seen in self._heard.seen.items()}
        if self._ranks is not None:
            pairs = self._of_all_ranks(pairs)
        return {name: {key: pair[side] for key, pair in pairs.items()} for side, name in enumerate(TAPPED)}

    def _of_all_ranks(self, found: Mapping[int, tuple[Tensor, Tensor]]) -> dict[int, tuple[Tensor, Tensor]]:
        """The rows of all ranks; one that saw nothing of a layer has none, and takes part."""
        whole = {}
        for key, w in ((id(layer.weight), layer.weight.detach()) for layer in self._layers):
            sizes = [w[0].numel(), len(w)]
            entered, left = found.get(key, (w.new_zeros(0, sizes[0]), w.new_zeros(0, sizes[1])))
            rows = _gathered(torch.cat([entered.to(w.dtype), left.to(w.dtype)], 1), self._ranks)
            if len(rows):
                entered, left = rows.split(sizes, 1)
                whole[key] = entered, left / self._ranks.size()
        return whole

    @staticmethod
    def check_seen(params: Iterable[tuple[str, Tensor]], seen: Container[int]) -> None:
        """Raise ``RuntimeError`` naming the first of the weights, given with names, that is not among the ``seen``."""
        for name, param in params:
            if id(param) not in seen:
                raise RuntimeError(
                    f"no inputs of a layer with the weight {name} were seen in the passes before the step"
                )

    def clear(self) -> None:
        """Forget what was seen."""
        self._heard.clear()

    def remove(self) -> None:
        """Listen no more."""
        self._heard.remove()


class Collector(Protocol):
    """What makes statistics of what flows through layers; passes are added up."""

    def enter(self, layer: Layer, x: Tensor) -> Tensor:
        """The statistic of what goes in, (samples, positions, inputs)."""

    def leave(self, layer: Layer, gradient: Tensor) -> Tensor:
        """The statistic of the unscaled gradient by what comes out, (samples, positions, outputs)."""


@dataclass
class Seen:
    """What the passes since the last :meth:`LayerTaps.clear` brought of a layer: their statistics, and counts."""

    entered: Tensor
    left: Tensor
    passes: int
    samples: int
    rows: int

    @property
    def positions(self) -> float:
        """Positions of a sample."""
        return self.rows / self.samples


class LayerTaps:
    """Has statistics made of what flows through layers, of those that are listened to.

    Both are made when they pass by, the inputs' in the forward pass, so that nothing is kept of a pass but them, and
    in-place operations behind or before a layer do no harm. They count once a backward pass has come back to the
    layer; a layer that is used several times counts several passes. A layer that is not listened to has no hooks.

    Args:
        collector: makes the statistics; held weakly, so that hooks on a model keep no optimizer alive.
        scaler: the GradScaler by whose scale output gradients are divided.
        together: makes one of the statistics of several passes; their sum by default.
    """

    def __init__(
        self,
        collector: Collector,
        scaler: torch.amp.GradScaler | None = None,
        together: Callable[[Tensor, Tensor], Tensor] = torch.add,
    ) -> None:
        self._collector: Callable[[], Collector | None] = weakref.ref(collector)
        self._scaler, self._together = scaler, together
        self._handles: dict[Layer, RemovableHandle] = {}
        self.seen: dict[Layer, Seen] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _deaf, ()  # copied or pickled with a model that has the hooks: they are those of another optimizer

    def listen(self, layer: Layer, wanted: bool) -> None:
        """Put a hook on a layer, or take it off."""
        if wanted and layer not in self._handles:
            hook = functools.partial(self._hear, layer)
            self._handles[layer] = layer.module.register_forward_hook(hook, with_kwargs=True)
        elif not wanted and layer in self._handles:
            self._handles.pop(layer).remove()

    def listens(self, layer: Layer) -> bool:
        """Whether there is a hook on the layer."""
        return layer in self._handles

    def _hear(
        self, layer: Layer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        collector = self._collector()
        if collector is None:
            self.remove()
            return None
        if not (torch.is_grad_enabled() and output.requires_grad):
            return None
        x = args[0] if args else kwargs["input"]
        with torch.no_grad(), without_autocast([x.device.type]):
            entering = layer.entered(x.detach())
            entered = collector.enter(layer, entering)
        samples, rows = entering.shape[0], entering.shape[0] * entering.shape[1]

        def note(gradient: Tensor) -> None:
            collector = self._collector()
            if collector is None or not self.listens(layer):
                return
            with torch.no_grad(), without_autocast([gradient.device.type]):
                left = collector.leave(layer, layer.left(_unscaled(gradient.detach(), self._scaler)))
            self._add(layer, entered, left, samples, rows)

        if output.ndim != layer.plain_ndim:
            output = output.clone()  # it was a view, and an operation in place leads gradients around a view's hooks
        output.register_hook(note)  # on the tensor: it is called with the gradient before what is done in place
        return output

    def _add(self, layer: Layer, entered: Tensor, left: Tensor, samples: int, rows: int) -> None:
        seen = self.seen.get(layer)
        if seen is None:
            self.seen[layer] = Seen(entered, left, 1, samples, rows)
            return
        seen.entered, seen.left = self._together(seen.entered, entered), self._together(seen.left, left)
        seen.passes, seen.samples, seen.rows = seen.passes + 1, seen.samples + samples, seen.rows + rows

    def clear(self) -> None:
        """Forget what was seen."""
        self.seen.clear()

    def remove(self) -> None:
        """Listen no more."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self.clear()


def _nobody() -> None:
    return None


def _deaf() -> LayerTaps:
    """Taps that nothing is collected from."""
    taps = LayerTaps.__new__(LayerTaps)
    taps._collector, taps._scaler, taps._together, taps._handles, taps.seen = _nobody, None, torch.add, {}, {}
    return taps


def _unscaled(gradient: Tensor, scaler: torch.amp.GradScaler | None) -> Tensor:
    if scaler is None or not scaler.is_enabled():
        return gradient
    return gradient.float() / scaler.get_scale()


def _gathered(rows: Tensor, ranks: Any) -> Tensor:
    """The rows of all ranks, of which each may have another number, in the order of the ranks."""
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(ranks.size())]
    torch.distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device), group=ranks)
    most = max(int(count) for count in counts)
    mine = rows.new_zeros(most, rows.shape[1])
    mine[: len(rows)] = rows
    parts = [torch.empty_like(mine) for _ in counts]
    torch.distributed.all_gather(parts, mine, group=ranks)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
