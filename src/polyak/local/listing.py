"""What runs in a network, in order: a stem, layers, a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

NORMALIZATIONS = (
    nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip
ENDINGS = (
    nn.Flatten, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip


@dataclass(frozen=True)
class Layers:
    """A network as a chain: ``head(layers[-1](... layers[0](stem(x))))`` is what it computes.

    Build one by hand for a network that :func:`layers` does not know. Everything maps one tensor to one tensor and
    consists of the network's own modules, so that training the chain trains the network.

    Args:
        layers: what may be cut between, in order, at least one; usually residual blocks.
        stem: what comes before; it stays with the first layer. ``None`` for nothing.
        head: what comes after: pooling and classifier. ``None`` for nothing.
        stages: for each layer the number of its stage from 1, where the network has stages; else empty.
    """

    layers: Sequence[nn.Module]
    stem: nn.Module | None = None
    head: nn.Module | None = None
    stages: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("layers must have at least one layer, got none")
        if self.stages and len(self.stages) != len(self.layers):
            raise ValueError(f"stages must be {len(self.layers)} numbers, one for each layer, got {len(self.stages)}")


class Part(nn.Module):
    """A piece of a model's forward that is no module of its own, such as tokens plus positions.

    It shares the modules and parameters that it names with the model, and owns nothing.

    Args:
        model: the model.
        names: the model's attributes (modules or parameters; dots allowed) whose parameters belong to the piece.
        run: ``run(model, x)`` computes the piece. A function at the top of a module, if the network is to be pickled.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that it is not registered a second time
        self._run = run
        for name in names:
            value = _attribute(model, name)
            key = name.replace(".", "_")
            if isinstance(value, nn.Parameter):
                self.register_parameter(key, value)
            else:
                self.add_module(key, value)

    def forward(self, x: Tensor) -> Tensor:
        """Run the piece."""
        return self._run(self._model[0], x)


def layers(model: nn.Module) -> Layers:
    """List the layers of a network.

    Known are :class:`~torch.nn.Sequential`; ResNets (``conv1``, ``bn1``, ``layer1`` ...), VGGs (``features``,
    ``classifier``) and vision transformers as torchvision and timm lay them out; anything else with a method
    ``local_layers()`` that returns :class:`Layers`. In a Sequential, a layer begins at each item with parameters that
    is no normalization, and the head is the last flattening or adaptive pooling with all after it, or else the
    last layer.

    Args:
        model: the network.

    Raises:
        TypeError: if the model is of no known kind; says what to pass instead.
    """
    if callable(own := getattr(model, "local_layers", None)):
        return cast(Layers, own())
    if isinstance(model, nn.Sequential):
        return _sequential(list(model))
    for has, listing in _KINDS:
        if all(_attribute(model, name) is not None for name in has):
            return listing(model)
    raise TypeError(
        f"the layers of a {type(model).__name__} cannot be listed; pass layers=polyak.local.Layers(...), or a list of "
        "blocks instead of the model"
    )


def grouped(items: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """Items in groups that each begin with one that has parameters and is no normalization."""
    groups: list[list[nn.Module]] = []
    pending: list[nn.Module] = []
    for item in items:
        starts = any(True for _ in item.parameters()) and not isinstance(item, NORMALIZATIONS)
        if starts:
            groups.append([*pending, item])
            pending = []
        elif groups:
            groups[-1].append(item)
        else:
            pending.append(item)
    return groups if groups else [pending] if pending else []


def chained(items: Sequence[nn.Module]) -> list[nn.Module]:
    """Items as layers: one module for each of their groups."""
    return [cast(nn.Module, joined(group)) for group in grouped(items)]  # none is empty


def split_head(items: Sequence[nn.Module]) -> tuple[list[nn.Module], list[nn.Module]]:
    """Items before the head, and the head."""
    for i in range(len(items) - 1, 0, -1):
        if isinstance(items[i], ENDINGS) and any(True for m in items[:i] for _ in m.parameters()):
            while i > 1 and isinstance(items[i - 1], ENDINGS):
                i -= 1
            return list(items[:i]), list(items[i:])
    groups = grouped(items)
    last = groups[-1] if groups else []
    return list(items[: len(items) - len(last)]), last


def joined(items: Sequence[nn.Module]) -> nn.Module | None:
    """One module for several; ``None`` for none."""
    return None if not items else items[0] if len(items) == 1 else nn.Sequential(*items)


def _sequential(items: list[nn.Module]) -> Layers:
    body, head = split_head(items)
    if not body:
        raise TypeError(f"a Sequential of {len(items)} items has no layers before its head; there is nothing to cut")
    return Layers(chained(body), head=joined(head))


def _resnet(model: Any) -> Layers:
    names = [name for name in ("conv1", "bn1", "relu", "act1", "maxpool") if _attribute(model, name) is not None]
    blocks, stages, stage = [], [], 1
    while isinstance(found := getattr(model, f"layer{stage}", None), nn.Sequential):
        blocks += list(found)
        stages += [stage] * len(found)
        stage += 1
    stem = joined([getattr(model, name) for name in names])
    return Layers(blocks, stem, _resnet_head(model), stages)


def _resnet_head(model: Any) -> nn.Module:
    if hasattr(model, "forward_head"):
        return Part(model, [n for n in ("global_pool", "fc") if hasattr(model, n)], _forward_head)
    return nn.Sequential(model.avgpool, nn.Flatten(), model.fc)


def _vgg(model: Any) -> Layers:
    return Layers(chained(list(model.features)), head=nn.Sequential(model.avgpool, nn.Flatten(), model.classifier))


def _timm_vgg(model: Any) -> Layers:
    return Layers(chained(list(model.features)), head=Part(model, ("pre_logits", "head"), _forward_head))


def _forward_head(model: Any, x: Tensor) -> Tensor:
    return cast(Tensor, model.forward_head(x))


def _vit(model: Any) -> Layers:
    stem = Part(model, ("conv_proj", "class_token", "encoder.pos_embedding", "encoder.dropout"), _vit_stem)
    return Layers(list(model.encoder.layers), stem, Part(model, ("encoder.ln", "heads"), _vit_head))


def _vit_stem(model: Any, images: Tensor) -> Tensor:
    tokens = model._process_input(images)
    tokens = torch.cat([model.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
    return cast(Tensor, model.encoder.dropout(tokens + model.encoder.pos_embedding))


def _vit_head(model: Any, tokens: Tensor) -> Tensor:
    return cast(Tensor, model.heads(model.encoder.ln(tokens)[:, 0]))


def _timm_vit(model: Any) -> Layers:
    candidates = ("patch_embed", "cls_token", "reg_token", "pos_embed", "pos_drop", "patch_drop", "norm_pre")
    stem = Part(model, [n for n in candidates if _attribute(model, n) is not None], _timm_vit_stem)
    ending = [n for n in ("norm", "attn_pool", "fc_norm", "head_drop", "head") if _attribute(model, n) is not None]
    return Layers(list(model.blocks), stem, Part(model, ending, _timm_vit_head))


def _timm_vit_stem(model: Any, images: Tensor) -> Tensor:
    tokens = model.patch_drop(model._pos_embed(model.patch_embed(images)))
    return cast(Tensor, model.norm_pre(tokens))


def _timm_vit_head(model: Any, tokens: Tensor) -> Tensor:
    return cast(Tensor, model.forward_head(model.norm(tokens)))


def _attribute(model: object, name: str) -> Any:
    """A dotted attribute, ``None`` where it is missing."""
    for part in name.split("."):
        model = getattr(model, part, None)
    return model


# Attributes that tell a kind of network, and what lists its layers; the more special first.
_KINDS: tuple[tuple[tuple[str, ...], Callable[[Any], Layers]], ...] = (
    (("patch_embed", "_pos_embed", "blocks", "norm", "forward_head"), _timm_vit),
    (("conv_proj", "_process_input", "class_token", "encoder.layers", "encoder.ln", "heads"), _vit),
    (("features", "pre_logits", "forward_head"), _timm_vgg),
    (("features", "avgpool", "classifier"), _vgg),
    (("conv1", "bn1", "layer1", "fc"), _resnet),
)
