"""Updates by themselves, once for each step that an optimizer really takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from polyak.memory._check import require

if TYPE_CHECKING:
    from polyak.teachers.ema import EMA

When = Literal["after_step", "before_forward"]


class Hook:
    """Calls a function; a copy of it, made or pickled with the model or optimizer that it hangs on, calls nothing."""

    def __init__(self, function: Callable[..., None] | None = None) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> None:
        if self._function is not None:
            self._function(*arguments)

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()


class Attachment:
    """Hooks that update an EMA for an optimizer's steps; see :meth:`polyak.teachers.EMA.attach`."""

    def __init__(self, ema: EMA, optimizer: torch.optim.Optimizer, when: When) -> None:
        require(when in ("after_step", "before_forward"), "when", when, "'after_step' or 'before_forward'")
        self._ema, self._when, self._warned = ema, when, False
        optimizer = _innermost(optimizer)
        self._handles: list[RemovableHandle] = [optimizer.register_step_post_hook(Hook(self._after_step))]
        if when == "before_forward":
            self._handles.append(optimizer.register_step_pre_hook(Hook(self._before_step)))
            self._handles.append(ema.model.register_forward_pre_hook(Hook(self._before_forward)))

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Make up for an update that was due before the last forward: the weights are still those of then."""
        if not self._ema.pending or self._ema.is_swapped:
            return
        if not self._warned:
            self._warned = True
            warnings.warn(
                "the model made no forward in training mode since the last step, so its average moves late, after the "
                "forward: attach to the module that is called (the compiled one, where it is compiled), or take "
                "when='after_step'",
                RuntimeWarning,
                stacklevel=2,
            )
        self._ema.update()
        self._ema.pending = False

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # Only an optimizer that unscales by itself is called for a step that is to be skipped.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return
        if self._when == "after_step":
            self._ema.update()
        else:
            self._ema.pending = True

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        # a compiled forward would trace the update instead of making it; one inside of swapped() runs the averages
        if torch.compiler.is_compiling():
            return
        if self._ema.pending and module.training and not self._ema.is_swapped:
            self._ema.update()
            self._ema.pending = False

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()


def _innermost(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's and Lightning's wrappers, whose own hooks are never called."""
    inner = getattr(optimizer, "optimizer", None) or getattr(optimizer, "_optimizer", None)
    return _innermost(inner) if isinstance(inner, torch.optim.Optimizer) else optimizer
