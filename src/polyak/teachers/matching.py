"""The tensors of a model by name, wherever they stand, and whether two models' fit each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

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
    path: str = ""
    """Of the owner, with a dot behind it."""

    @property
    def store(self) -> dict[str, Any]:
        """The dictionary of the owner that has the tensor under :attr:`key`."""
        return self.owner._parameters if self.is_parameter else self.owner._buffers

    @property
    def is_persistent(self) -> bool:
        """Whether it is part of the owner's ``state_dict``."""
        return self.is_parameter or self.key not in self.owner._non_persistent_buffers_set

    def read(self) -> Tensor:
        return cast(Tensor, self.store[self.key])

    def write(self, tensor: Tensor) -> None:
        """Put another tensor there, and where a module remembers its tensors elsewhere too, as recurrent ones do."""
        if "." in self.key:  # an owner of bare tensors, which have their whole names
            self.store[self.key] = tensor
        elif self.is_parameter or self.key in self.owner._buffers:
            setattr(self.owner, self.key, tensor)
        else:
            self.owner.register_buffer(self.key, tensor, persistent=False)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def without_wrappers(path: str) -> str:
    """A path without what torch.compile, FSDP and activation checkpointing put between."""
    return _WRAPPERS.sub("", path)


def clean(names: Iterable[str]) -> list[str]:
    """Names without what wrappers add: ``_orig_mod.`` and its like, and a ``module.`` that all begin with."""
    plain = [without_wrappers(name) for name in names]
    while plain and all(name.startswith("module.") for name in plain):
        plain = [name.removeprefix("module.") for name in plain]
    return plain


def owners_of(model: nn.Module) -> dict[str, nn.Module]:
    """The submodules of a model by path with a dot behind it, without what wrappers add."""
    return {without_wrappers(f"{path}." if path else ""): module for path, module in model.named_modules()}


def places_of(model: nn.Module) -> dict[str, list[Place]]:
    """Each tensor of a model once, under its first name, with all places that hold it or share its memory.

    Raises:
        ValueError: on tensors without storage (meta, lazy) or sparse ones; names them.
        RuntimeError: if it is sharded with FSDP1 or ZeRO-3.
    """
    refuse_other_shards(model)
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
                    path = f"{prefix}." if prefix else ""
                    yield Place(module, key, is_parameter, path + key, path)


def _identity(tensor: Tensor) -> object:
    """Equal for tensors that are one memory."""
    pointer = 0 if is_dtensor(tensor) else address(tensor)
    return (pointer, tensor.shape, tensor.stride(), tensor.dtype) if pointer else id(tensor)


def address(tensor: Tensor) -> int:
    """Where the memory of a tensor, or of this rank's shard, begins; 0 for one without, as if empty or a wrapper."""
    if is_dtensor(tensor):
        with torch.no_grad():
            tensor = tensor.to_local()  # type: ignore[attr-defined]
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def refuse_other_shards(model: nn.Module) -> None:
    """Refuse parameters of which a rank has a piece that is no tensor of its own: averages could not be put there.

    Raises:
        RuntimeError: if the model is sharded with FSDP1 or ZeRO-3.
    """
    parameters = list(model.parameters())
    wrapped = any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules())
    if wrapped or any(hasattr(p, "_fsdp_flattened") or hasattr(p, "ds_id") for p in parameters):
        kind = "ZeRO-3" if any(hasattr(p, "ds_id") for p in parameters) else "FSDP1"
        raise RuntimeError(
            f"model must be whole or sharded with FSDP2 (torch.distributed.fsdp.fully_shard) to be averaged, got one "
            f"sharded with {kind}: a rank's averages would be of pieces that its forward does not read"
        )


def is_plain(tensor: Tensor) -> bool:
    """Whether it is torch's own kind of tensor or a DTensor: nothing hangs on it that a new tensor would lack."""
    return type(tensor) in (Tensor, nn.Parameter, nn.Buffer) or is_dtensor(tensor)


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
        elif kind_of(x) != kind_of(e):
            wrong.append(f"{name!r} has dtype {x.dtype}, which does not go with {e.dtype}")
        elif _sharding(x) != _sharding(e):
            wrong.append(f"{name!r} is sharded as {_sharding(x)} and not as {_sharding(e)}")
    if wrong:
        tied = " (tied tensors count once, under their first name)" if online.keys() != average.keys() else ""
        raise ValueError(f"{what} must have the tensors of {other}, got: {'; '.join(wrong)}{tied}")


def kind_of(tensor: Tensor) -> object:
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
