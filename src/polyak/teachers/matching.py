"""The tensors of a model by name, wherever they stand, and whether two models' fit each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

_WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class Place(NamedTuple):
    """Where a module keeps a tensor. Tensors are looked up at each use: ``.to()`` and ``load`` may replace them."""

    owner: nn.Module
    key: str
    is_parameter: bool
    name: str
    """Of this place, which where tensors are tied is not always the first."""

    def read(self) -> Tensor:
        store = self.owner._parameters if self.is_parameter else self.owner._buffers
        return cast(Tensor, store[self.key])


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def clean(names: Iterable[str]) -> list[str]:
    """Names without what wrappers add: ``_orig_mod.`` and its like, and a ``module.`` that all begin with."""
    plain = [_WRAPPERS.sub("", name) for name in names]
    while plain and all(name.startswith("module.") for name in plain):
        plain = [name.removeprefix("module.") for name in plain]
    return plain


def places_of(model: nn.Module) -> dict[str, list[Place]]:
    """Each tensor of a model once, under its first name, with all places that hold it or share its memory.

    Raises:
        ValueError: on tensors without storage (meta, lazy) or sparse ones; names them.
    """
    found: dict[str, list[Place]] = {}
    known: dict[object, str] = {}
    unfit: list[str] = []
    places = list(_all_places(unwrap(model)))
    for name, whole in zip(clean(place.name for place in places), places, strict=True):
        place = whole._replace(name=name)
        tensor = place.read()
        if is_lazy(tensor) or tensor.is_meta or tensor.layout != torch.strided:
            unfit.append(name)
            continue
        first = known.setdefault(_identity(tensor), name)
        found.setdefault(first, []).append(place)
    if unfit:
        raise ValueError(f"model must have dense, initialised tensors on a real device, got others in {unfit}")
    return found


def _all_places(model: nn.Module) -> Iterator[Place]:
    for prefix, module in model.named_modules():
        for store, is_parameter in ((module._parameters, True), (module._buffers, False)):
            for key, tensor in store.items():
                if tensor is not None:
                    yield Place(module, key, is_parameter, f"{prefix}.{key}" if prefix else key)


def _identity(tensor: Tensor) -> object:
    """Equal for tensors that are one memory."""
    if is_dtensor(tensor) or tensor.numel() == 0:
        return id(tensor)
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def is_averageable(tensor: Tensor) -> bool:
    """Whether an average of such tensors has a meaning: floating and complex ones."""
    return tensor.is_floating_point() or tensor.is_complex()


def check_fit(
    online: dict[str, Tensor], average: dict[str, Tensor], what: str, other: str = "the averaged model"
) -> None:
    """Whether the tensors of ``what`` (``online``) have the names, shapes, kinds and shards of the averages.

    Raises:
        ValueError: if they have not; lists all differences.
    """
    wrong = [f"missing {name!r}" for name in average if name not in online]
    wrong += [f"unexpected {name!r}" for name in online if name not in average]
    for name, e in average.items():
        x = online.get(name)
        if x is None:
            continue
        if x.shape != e.shape:
            wrong.append(f"{name!r} has shape {tuple(x.shape)} and not {tuple(e.shape)}")
        elif _kind(x) != _kind(e):
            wrong.append(f"{name!r} has dtype {x.dtype}, which does not go with {e.dtype}")
        elif _sharding(x) != _sharding(e):
            wrong.append(f"{name!r} is sharded as {_sharding(x)} and not as {_sharding(e)}")
    if wrong:
        tied = " (tied tensors count once, under their first name)" if online.keys() != average.keys() else ""
        raise ValueError(f"{what} must have the tensors of {other}, got: {'; '.join(wrong)}{tied}")


def _kind(tensor: Tensor) -> object:
    """Floating tensors of all widths go together, and so do complex ones; the rest only with its like."""
    return "floating" if tensor.is_floating_point() else "complex" if tensor.is_complex() else tensor.dtype


def _sharding(tensor: Tensor) -> object:
    return (getattr(tensor, "device_mesh", None), getattr(tensor, "placements", None))


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, such as FSDP2 makes; told without importing torch.distributed.tensor."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, complex numbers as pairs of real ones: the tensor itself, or a view."""
    if is_dtensor(tensor):
        tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor
