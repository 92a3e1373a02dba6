"""What becomes of which tensor: averaged, copied, kept or shared."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from polyak.memory._check import require
from polyak.teachers.matching import Place, is_averageable, is_dtensor, is_plain

Buffers = Literal["copy", "average", "keep"]
Frozen = Literal["copy", "share"]
Kind = Literal["average", "copy", "keep", "share"]
Places = dict[str, list[Place]]

_DTYPES = (None, torch.float32, torch.float64, torch.bfloat16)


class Treatment:
    """How an :class:`polyak.teachers.EMA` treats tensors, see its arguments of these names.

    Attributes:
        averaged: names of parameters that have been averaged once, which they are from then on: one that is frozen for
            another network's turn comes back, and its average must not be gone then.

    What is only copied and of a class of its own, such as a quantized weight, is copied as a whole, with what hangs on
    it, when it has changed: such classes repack their content in a forward.
    """

    def __init__(
        self, buffers: Buffers, frozen: Frozen, dtype: torch.dtype | None, device: torch.device | str | None
    ) -> None:
        require(buffers in ("copy", "average", "keep"), "buffers", buffers, "'copy', 'average' or 'keep'")
        require(frozen in ("copy", "share"), "frozen", frozen, "'copy' or 'share', or None")
        require(dtype in _DTYPES, "dtype", dtype, "None, float32, float64 or bfloat16")
        self.buffers, self.frozen, self.dtype, self.device = buffers, frozen, dtype, device
        self.averaged: set[str] = set()
        self._stamps: dict[str, tuple[int, int]] = {}

    def of(self, name: str, place: Place) -> Kind:
        """What becomes of the tensor at a place of the online model.

        Buffers that are not in the ``state_dict`` are caches, and never averaged. With ``"keep"``, a number beside
        floating buffers counts what they are made of, and stays with them.
        """
        tensor = place.read()
        if place.is_parameter:
            trained = is_averageable(tensor) and (tensor.requires_grad or name in self.averaged)
            return "average" if trained else self.frozen
        if self.buffers == "keep":
            counts = tensor.ndim == 0 and any(is_floating(b) for b in place.owner._buffers.values())
            return "keep" if is_averageable(tensor) or counts else "copy"
        return "average" if self.buffers == "average" and is_averageable(tensor) and place.is_persistent else "copy"

    def kinds(self, places: Places) -> dict[str, Kind]:
        """What becomes of each tensor of the online model."""
        return {name: self.of(name, where[0]) for name, where in places.items()}

    def remember(self, places: Places) -> None:
        """Parameters that are averaged now go on being averaged."""
        self.averaged |= {n for n, p in places.items() if p[0].is_parameter and self.of(n, p[0]) == "average"}

    def peculiar(self, places: Places) -> dict[str, tuple[int, int]]:
        """What is only copied and of a class of its own, by name, with something that tells when it has changed."""
        kinds = self.kinds(places)
        tensors = {name: where[0].read() for name, where in places.items() if kinds[name] == "copy"}
        return {name: (id(x), x._version) for name, x in tensors.items() if not is_plain(x)}

    def outdated(self, places: Places) -> set[str]:
        """Those of :meth:`peculiar` that have changed since :meth:`stamp`."""
        return {name for name, stamp in self.peculiar(places).items() if self._stamps.get(name) != stamp}

    def stamp(self, places: Places) -> None:
        """The averages have these as they are now."""
        self._stamps = self.peculiar(places)

    def dtype_for(self, tensor: Tensor) -> torch.dtype:
        """The dtype of a tensor's average."""
        if not is_averageable(tensor):
            return tensor.dtype
        real = tensor.dtype.to_real()
        wanted = self.dtype or (torch.float32 if real.itemsize < 4 else real)
        if not tensor.is_complex():
            return wanted
        return torch.complex128 if wanted == torch.float64 else torch.complex64


def is_floating(tensor: Tensor | None) -> bool:
    """Whether there is a tensor, and a floating one."""
    return tensor is not None and tensor.is_floating_point()


def is_movable(where: list[Place]) -> bool:
    """Whether a buffer may be replaced by another of its kind without anything else to be looked at."""
    tensor = where[0].read()
    if len(where) > 1 or where[0].is_parameter or tensor.is_complex():
        return False
    return is_plain(tensor) and not is_dtensor(tensor)
