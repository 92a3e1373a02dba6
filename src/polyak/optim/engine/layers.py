"""Layers: a weight, its bias and what flows through them, seen as one matrix.

The bias is the last column of the weight, and meets a 1 at the end of what goes in; a convolution is a linear layer of
its patches.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from polyak.declare import Described

UNDERSTOOD = (nn.Linear, nn.Conv2d)
UNSUPPORTED = (
    nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Bilinear, nn.RNNBase,
    nn.RNNCellBase, nn.MultiheadAttention,
)  # fmt: skip
"""Layers with matrices that no hook of a Linear or Conv2d sees."""
PATTERNS = Described("a sequence of name patterns", lambda v: not isinstance(v, str) and isinstance(v, Sequence))


@dataclass(eq=False)
class Layer:
    """An ``nn.Linear`` or ``nn.Conv2d`` whose weight is trained.

    Args:
        name: what errors call it: its name in the model.
        module: the layer.
    """

    name: str
    module: nn.Module

    def __post_init__(self) -> None:
        weight, bias = self.module.weight, self.module.bias
        assert isinstance(weight, nn.Parameter)
        self.weight: nn.Parameter = weight
        self.bias: nn.Parameter | None = bias if isinstance(bias, nn.Parameter) and bias.requires_grad else None
        self.outputs = len(weight)
        self.inputs = weight.numel() // len(weight) + (self.bias is not None)

    @property
    def params(self) -> tuple[nn.Parameter, ...]:
        """The weight, and the bias if it has one that is trained."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def plain_ndim(self) -> int:
        """Dimensions of an output that is no view of another tensor."""
        return 4 if isinstance(self.module, nn.Conv2d) else 2

    def entered(self, x: Tensor) -> Tensor:
        """What goes in as (samples, positions, inputs): patches of a convolution, and a 1 for the bias."""
        module = self.module
        if isinstance(module, nn.Conv2d):
            x = x if x.ndim == 4 else x[None]
            padding = padding_of(module)
            assert padding is not None
            rows = nn.functional.unfold(x, module.kernel_size, module.dilation, padding, module.stride).movedim(1, -1)
        else:
            rows = _of_samples(x)
        if self.bias is None:
            return rows
        return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], -1)

    def left(self, gradient: Tensor) -> Tensor:
        """The gradient by what comes out as (samples, positions, outputs)."""
        if not isinstance(self.module, nn.Conv2d):
            return _of_samples(gradient)
        gradient = gradient if gradient.ndim == 4 else gradient[None]
        return gradient.flatten(2).movedim(1, -1)

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors like :attr:`params` as one matrix (outputs, inputs)."""
        return torch.cat([t.reshape(self.outputs, -1) for t in tensors], 1)

    def part(self, matrix: Tensor) -> list[Tensor]:
        """The inverse of :meth:`join`."""
        columns = [p.numel() // self.outputs for p in self.params]
        parts = matrix.split(columns, 1)
        return [part.reshape(p.shape).to(p.dtype) for part, p in zip(parts, self.params, strict=True)]


def _of_samples(x: Tensor) -> Tensor:
    """A linear layer's tensor as (samples, positions, features)."""
    return x.reshape(x.shape[0] if x.ndim > 1 else 1, -1, x.shape[-1])


def padding_of(module: nn.Conv2d) -> tuple[int, ...] | None:
    """The padding of a convolution in numbers; None if it is not the same on both sides."""
    if not isinstance(module.padding, str):
        return tuple(int(n) for n in module.padding)
    if module.padding == "valid":
        return (0, 0)
    widths = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return None if any(width % 2 for width in widths) else tuple(width // 2 for width in widths)


def find_layers(
    model: nn.Module, exclude: Sequence[str], owner: str, kinds: tuple[type[nn.Module], ...] = UNDERSTOOD + UNSUPPORTED
) -> list[Layer]:
    """The layers of a model whose weights are trained.

    Args:
        model: the model.
        exclude: name patterns (``fnmatch``) of layers to leave alone.
        owner: what errors call the optimizer.
        kinds: the layers that count; by default those that are not understood do too, and are refused.

    Raises:
        TypeError: ``exclude`` is no sequence of patterns.
        ValueError: a pattern that matches nothing, no layer, or one that is shared, sharded or of a kind whose inputs
            are not understood; names it.
    """
    if exclude not in PATTERNS:
        raise TypeError(f"{owner}: exclude must be {PATTERNS}, got {exclude!r}")
    if isinstance(model, DistributedDataParallel):
        model = model.module  # patterns are of the names that the model itself gives
    modules = list(model.named_modules(remove_duplicate=False))
    for pattern in exclude:
        if not fnmatch.filter([name for name, _ in modules], pattern):
            raise ValueError(f"{owner}: no layer matches exclude={pattern!r}")
    kept = [(n, m) for n, m in modules if not any(fnmatch.fnmatch(n, pattern) for pattern in exclude)]
    opaque = [name for name, module in modules if isinstance(module, UNSUPPORTED)]
    found: list[Layer] = []
    for name, module in kept:
        if (
            not isinstance(module, kinds)
            or not _is_trained(module)
            or any(_is_inside(name, parent) for parent in opaque)
        ):
            continue
        reason = _why_not(module)
        if reason:
            raise ValueError(f"{owner}: the layer {name or 'itself'} {reason}; {_remedy(name)}")
        found.append(Layer(name, module))
    _refuse_shared(model, found, owner)
    if not found:
        known = " or ".join(kind.__name__ for kind in UNDERSTOOD if kind in kinds)
        raise ValueError(f"{owner}: the model has no {known} layer whose weight is trained")
    return found


def _remedy(name: str) -> str:
    return f"exclude={name!r} leaves it to the rule of other weights"


def _is_trained(module: nn.Module) -> bool:
    """Whether the weight of a layer is trained."""
    if isinstance(module, UNSUPPORTED):
        return any(p.requires_grad for p in module.parameters())
    return bool(module.weight.requires_grad)


def _is_inside(name: str, parent: str) -> bool:
    return name != parent and (not parent or name.startswith(f"{parent}."))


def _why_not(module: nn.Module) -> str:
    """Why what flows through a layer is not understood; empty if it is."""
    params = list(module.parameters(recurse=False))
    if any(nn.parameter.is_lazy(p) for p in params):
        return "has no shape yet: run a pass first"
    if isinstance(module, UNSUPPORTED):
        return f"is a {type(module).__name__}; only Linear and Conv2d are understood"
    if not isinstance(module.weight, nn.Parameter):
        return "has a weight that is computed (parametrized)"
    if any(hasattr(p, "placements") for p in params):
        return "is sharded (FSDP2, DTensor), and its factors are made of whole rows of its inputs"
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            return f"has groups={module.groups}; only 1 is understood"
        if module.padding_mode != "zeros" or padding_of(module) is None:
            return f"pads in a way that is not understood: {module.padding_mode}, {module.padding!r}"
    return ""


def _refuse_shared(model: nn.Module, layers: Sequence[Layer], owner: str) -> None:
    """Refuse a weight or bias that the model has under two names: its inputs would not be those of one layer."""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    for layer in layers:
        for p in layer.params:
            if len(names[id(p)]) > 1:
                raise ValueError(f"{owner}: {' and '.join(names[id(p)])} are one weight; {_remedy(layer.name)}")
