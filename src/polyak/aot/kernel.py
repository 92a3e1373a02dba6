"""A package that is loaded and can be called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RUNNERS = 4  # threads that may be inside one kernel at once; more wait for each other


class Kernel:
    """A compiled function.

    ``run(tensors)`` takes a list of exactly what the source's inputs say, and trusts the caller with it: tensors of
    those dtypes and sizes on the kernel's device, dense, aligned to 16 bytes, no two in the same memory unless the
    function allows it, on accelerators of less than 2**31 elements. It returns a list of the function's results; where
    the function returns None, the list means nothing. Versions of tensors that it writes are not counted, see
    :func:`torch.autograd.graph.increment_version`.
    """

    __slots__ = ("__weakref__", "path", "run")

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path
        self.run: Callable[[list[Tensor]], list[Tensor]] = _runner(str(path), device)

    def __repr__(self) -> str:
        return f"Kernel({self.path.name})"


def _runner(path: str, device: torch.device) -> Callable[[list[Tensor]], list[Tensor]]:
    index = -1 if device.index is None else device.index
    loader: Any = getattr(getattr(torch._C, "_aoti", None), "AOTIModelPackageLoader", None)
    if loader is not None:  # what the documented way comes to, without 3 s of imports and 10 us a call
        run: Callable[[list[Tensor]], list[Tensor]] = loader(path, "model", False, RUNNERS, index).run
        return run
    from torch._inductor import aoti_load_package

    model = aoti_load_package(path, device_index=index)
    return lambda tensors: list(model(*tensors) or ())
