"""Whether a compiled function may be called directly here and now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch

PLAIN: frozenset[type] = frozenset((Tensor, torch.nn.Parameter, torch.nn.Buffer))
_modes: Any = getattr(torch._C, "_len_torch_dispatch_stack", None) or _python_dispatch.is_in_torch_dispatch_mode
_transforms: Any = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", lambda: None)


def usable(tensors: Iterable[Tensor] = ()) -> bool:
    """Whether compiled code does what torch would do: no mode watches or replaces operations, all tensors are plain.

    A dispatch mode (fake tensors, a flop counter, tracing) or a transform (vmap, grad) would not see what compiled code
    does, or break it. Function modes, such as a default device, stand before torch's functions and not inside them.
    """
    return not _modes() and _transforms() is None and PLAIN.issuperset(map(type, tensors))
