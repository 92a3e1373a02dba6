"""Updates by themselves, once for each step that an optimizer really takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from polyak.memory._check import require

When = Literal["after_step", "before_forward"]


class Attachment:
    """Hooks that call ``update`` for an optimizer's steps; see :meth:`polyak.teachers.EMA.attach`.

    ``update`` says whether it could be done now.
    """

    def __init__(
        self,
        update: Callable[[], bool],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        when: When,
        first: bool,
    ) -> None:
        require(when in ("after_step", "before_forward"), "when", when, "'after_step' or 'before_forward'")
        self._update, self._when = update, when
        self.pending = first and when == "before_forward"
        """Whether the next forward has to update."""
        self._handles: list[RemovableHandle] = [_innermost(optimizer).register_step_post_hook(self._after_step)]
        if when == "before_forward":
            self._handles.append(model.register_forward_pre_hook(self._before_forward))

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # Only an optimizer that unscales by itself is called for a step that is to be skipped.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return
        if self._when == "after_step":
            self._update()
        else:
            self.pending = True

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if self.pending and module.training and self._update():
            self.pending = False

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()


def _innermost(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's and Lightning's wrappers, whose own hooks are never called."""
    inner = getattr(optimizer, "optimizer", None) or getattr(optimizer, "_optimizer", None)
    return _innermost(inner) if isinstance(inner, torch.optim.Optimizer) else optimizer
