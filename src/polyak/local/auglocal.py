"""AugLocal: auxiliary networks that look like the rest of the network, sampled at equal distances."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

from torch import nn

from polyak.local.auxiliary import Auxiliary, Classifier, GlobalPool, Site, channels
from polyak.local.listing import ENDINGS, NORMALIZATIONS
from polyak.local.man import fresh
from polyak.local.resnet import shortcut

BlockFactory = Callable[[nn.Module, int, int, int], nn.Module]


@dataclass(frozen=True)
class AugLocal(Auxiliary):
    r"""AugLocal (Ma et al., ICLR 2024, arXiv:2402.17318): deeper auxiliary networks for earlier blocks.

    Count layers from 0, the stem, to :math:`L - 1`, and let :math:`l` be the last layer of a block. Its auxiliary
    network has

    .. math:: d_l = \max(1, \mathrm{round}(d (1 - \tau r) + \tau r)), \qquad r = \min(1, l / (L - d - 2))

    layers, built like the layers :math:`\mathrm{round}(l + (L - 1 - l)\, i / d_l)`, :math:`i = 1..d_l`, or like all the
    later layers if there are no more than :math:`d_l`; rounded half to even. They have those layers' widths, and
    weights of their own, and halve the image where the width doubles. Mean pooling and a linear classifier follow,
    with batch normalization before it if :math:`d_l = 1`.

    The authors make every layer a block but for the last :math:`d + 1`, which are one: :meth:`published_cuts`. With
    other cuts :math:`l` is the last layer of its block, and a block that ends within the last :math:`d + 1` layers
    has what is left of them; there the authors have no rule.

    Args:
        aux_depth: :math:`d` >= 1; 2 to 6 on CIFAR.
        pyramid_coeff: :math:`\tau` in [0, 1], how much shallower the last ones are; 0 gives all the depth :math:`d`.
        block: ``block(layer, in_channels, out_channels, stride)`` builds a layer like ``layer`` for another input.
            ``None`` knows residual blocks in torchvision's and timm's layout, convolutions with what follows them, and
            layers that keep the shape, as in transformers.

    Raises:
        ValueError: if an argument is out of range. When building: if the network has fewer than :math:`d + 3` layers
            or gets narrower with depth; if a layer cannot be built anew without ``block``.
    """

    aux_depth: int = 2
    pyramid_coeff: float = 0.5
    block: BlockFactory | None = None

    def __post_init__(self) -> None:
        if self.aux_depth < 1:
            raise ValueError(f"aux_depth must be at least 1, got {self.aux_depth!r}")
        if not 0.0 <= self.pyramid_coeff <= 1.0:
            raise ValueError(f"pyramid_coeff must be in [0, 1], got {self.pyramid_coeff!r}")

    def published_cuts(self, num_layers: int) -> tuple[int, ...]:
        """The authors' cuts for a network of a stem and ``num_layers`` layers: every layer but the last ``d + 1``.

        Raises:
            ValueError: if there are fewer than ``aux_depth + 2`` layers.
        """
        _require_layers(num_layers + 1, self.aux_depth)
        return (*range(num_layers - self.aux_depth), num_layers)

    def build(self, site: Site) -> Classifier:
        """See :class:`Auxiliary`."""
        first = 0 if site.layers.stem is not None else 1  # without a stem, the first layer is number 0
        widths = [channels(x, site.block) for x in site.outputs[first:]]
        # where the input is; behind MAN's layer that is one layer further than the cut
        layer = next((i for i, x in enumerate(site.outputs) if x is site.x), site.cut) - first
        if any(b < a for a, b in pairwise(widths)):
            raise ValueError(f"widths of the layers must not decrease with depth, got {widths!r}")
        depth = auxiliary_depth(layer, len(widths), self.aux_depth, self.pyramid_coeff)
        selected = selected_layers(layer, len(widths), depth)
        halvings = strides(layer, selected, widths) if site.x.ndim == 4 else [1] * len(selected)
        body: list[nn.Module] = []
        width = widths[layer]
        make = self.block or rebuilt
        for chosen, stride in zip(selected, halvings, strict=True):
            body.append(make(site.layers.layers[chosen + first - 1], width, widths[chosen], stride))
            width = widths[chosen]
        tail: list[nn.Module] = [nn.BatchNorm1d(width)] if depth <= 1 else []
        return Classifier(nn.Sequential(*body, GlobalPool(), *tail, nn.Linear(width, site.num_outputs)))


def auxiliary_depth(layer: int, num_layers: int, aux_depth: int, pyramid_coeff: float) -> int:
    """Depth :math:`d_l` of the auxiliary network after ``layer``; see :class:`AugLocal`.

    Raises:
        ValueError: if the network has fewer than ``aux_depth + 3`` layers, the stem being one.
    """
    _require_layers(num_layers, aux_depth)
    last = num_layers - aux_depth - 2
    r = pyramid_coeff * min(layer, last) / last
    return max(1, round(aux_depth * (1 - r) + r))


def selected_layers(layer: int, num_layers: int, depth: int) -> list[int]:
    """The later layers that an auxiliary network of ``depth`` layers copies the make of; see :class:`AugLocal`."""
    left = num_layers - 1 - layer
    if depth >= left:
        return list(range(layer + 1, num_layers))
    return [round(layer + left * i / depth) for i in range(1, depth + 1)]


def strides(layer: int, selected: Sequence[int], widths: Sequence[int]) -> list[int]:
    """Stride 2 where the width has doubled; of two halvings due at one layer the second is made at the next."""
    width, due, found = widths[layer], 0, []
    for chosen in selected:
        due += math.floor(math.log2(widths[chosen] / width))
        found.append(2 if due >= 1 else 1)
        due -= due >= 1
        width = widths[chosen]
    return found


def rebuilt(layer: nn.Module, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A layer like ``layer``, with weights of its own, for another input.

    Raises:
        ValueError: if the layer is of no known kind.
    """
    if hasattr(layer, "expansion") and hasattr(layer, "conv1") and _plain(layer):
        planes = out_channels // int(cast(Any, layer).expansion)
        made = type(layer)(in_channels, planes, stride, downsample=shortcut(in_channels, out_channels, stride))
        return _initialized(made)
    inside = list(layer) if isinstance(layer, nn.Sequential) else [layer]
    if isinstance(inside[0], nn.Conv2d) and not any(isinstance(m, ENDINGS) for m in inside):
        return _initialized(_convolution(inside, in_channels, out_channels, stride))
    if stride == 1 and _keeps(layer, in_channels, out_channels):
        return fresh(layer)
    raise ValueError(
        f"a {type(layer).__name__} cannot be built anew for {in_channels} -> {out_channels} channels and stride "
        f"{stride}; pass AugLocal(block=...)"
    )


def _convolution(inside: list[nn.Module], in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """VGG's layer; its maximum pooling stands before the layer whose width is new."""
    old = cast(nn.Conv2d, inside[0])
    conv = nn.Conv2d(
        in_channels, out_channels, cast(Any, old.kernel_size), padding=cast(Any, old.padding), bias=old.bias is not None
    )
    norm = [nn.BatchNorm2d(out_channels)] if any(isinstance(m, NORMALIZATIONS) for m in inside) else []
    return nn.Sequential(*([nn.MaxPool2d(2)] if stride == 2 else []), conv, *norm, nn.ReLU(inplace=True))


def _plain(layer: nn.Module) -> bool:
    """No grouped convolutions, whose number of groups the class would have to be told."""
    return all(m.groups == 1 for m in layer.modules() if isinstance(m, nn.Conv2d))


def _keeps(layer: nn.Module, in_channels: int, out_channels: int) -> bool:
    """Whether a layer can be used as it is: it has no convolution and the first linear map has the right width."""
    widths = [m.in_features for m in layer.modules() if isinstance(m, nn.Linear)]
    return in_channels == out_channels and bool(widths) and widths[0] == in_channels


def _initialized(module: nn.Module) -> nn.Module:
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    return module


def _require_layers(num_layers: int, aux_depth: int) -> None:
    if num_layers - aux_depth <= 2:
        raise ValueError(
            f"aux_depth must be below the number of layers less 2 ({num_layers - 2}, the stem being a layer), "
            f"got {aux_depth!r}"
        )
