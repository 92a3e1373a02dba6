"""Taps: what flows through layers, for rules that read it (second-order methods).

A rule says ``inputs=("inputs", "output_gradients")`` and finds both as attributes of its context: for the weight of an
``nn.Linear`` or ``nn.Conv2d`` the matrix (positions, features) of what went into the layer, a convolution's patches
unfolded, and that of the loss's gradients by what came out. Passes between two steps are put one below the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

TAPPED = ("inputs", "output_gradients")


class Taps:
    """Listens to the layers of a module.

    Row ``i`` of both matrices is of the same position of the same use of the layer. A use that no backward pass came
    back to is not there. Under a GradScaler the output gradients are scaled as the loss is, and stay so.

    Args:
        module: its ``nn.Linear`` and ``nn.Conv2d`` layers are listened to, in training passes with gradients enabled.
    """

    def __init__(self, module: nn.Module) -> None:
        self._seen: dict[int, list[tuple[Tensor, Tensor]]] = {}
        layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        self._handles = [layer.register_forward_hook(self._listen) for layer in layers]

    def _listen(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not (layer.training and torch.is_grad_enabled() and output.requires_grad):
            return
        key, entered = id(layer.weight), _positions(layer, args[0].detach())

        def note(gradient: Tensor) -> None:
            flat = gradient.detach().movedim(1, -1) if isinstance(layer, nn.Conv2d) else gradient.detach()
            self._seen.setdefault(key, []).append((entered, flat.reshape(-1, flat.shape[-1])))

        output.register_hook(note)  # uses come back in another order than they went, so only here is the pair known

    def by_name(self) -> dict[str, Mapping[int, Tensor]]:
        """What was seen since :meth:`clear`, by the ``id`` of the layer's weight."""
        return {
            name: {key: _below(pair[side] for pair in pairs) for key, pairs in self._seen.items()}
            for side, name in enumerate(TAPPED)
        }

    def check_seen(self, params: Iterable[tuple[str, Tensor]]) -> None:
        """Raise ``RuntimeError`` naming the first of the weights, given with names, that no pass since went through."""
        for name, param in params:
            if id(param) not in self._seen:
                raise RuntimeError(
                    f"no inputs of a layer with the weight {name} were seen in the passes before the step"
                )

    def clear(self) -> None:
        """Forget what was seen."""
        self._seen.clear()

    def remove(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()
        self.clear()


def _below(parts: Iterable[Tensor]) -> Tensor:
    """One matrix of all rows, without a copy where there is one part."""
    first, *more = parts
    return torch.cat([first, *more]) if more else first


def _positions(layer: nn.Module, x: Tensor) -> Tensor:
    """What went into a layer, one row for each application of its weight."""
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(-1, x.shape[-1])
    if isinstance(layer.padding, str) or layer.groups != 1:
        raise ValueError(f"taps: {layer} must have groups=1 and padding in numbers")
    patches = nn.functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.movedim(1, -1).reshape(-1, patches.shape[1])
