"""XGrad: gradients taken where the weights will probably be, for any optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from polyak.declare import Paper
from polyak.memory.averages import debias
from polyak.optim.engine import views
from polyak.optim.engine.keeping import held_as
from polyak.optim.engine.optimizer import Optimizer
from polyak.optim.methods.adam import Adam
from polyak.optim.methods.adamw import AdamW
from polyak.optim.methods.sgd import SGD

BALLS = (SGD, torch.optim.SGD)
ADAMS = (Adam, AdamW, torch.optim.Adam, torch.optim.AdamW)
LAST = "last_direction"
"""The key in ``optimizer.state[p]`` of the last step over its lr, where memories do not tell it."""


class XGrad:
    """XGrad (Guan et al., arXiv:2305.18240): predict, forward and backward there, restore, step.

    ::

        q <- p - steps_ahead * lr * direction of the last step
        g <- gradient at q
        p <- the optimizer's step from p with g

    The direction is the momentum of SGD, ``m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)`` of Adam and AdamW, from
    their memories, without weight decay and amsgrad. Of any other optimizer, an extension of the paper, it is the last
    step over its lr, decay and all, which takes one more tensor a weight. A weight that has not stepped is not moved.
    The lr is that of the group now. ::

        ahead = XGrad(optimizer)
        for x, y in loader:
            optimizer.zero_grad()
            with ahead.predicted():
                loss_of(model(x), y).backward()
            optimizer.step()

    Gradients may be accumulated inside the block. Buffers (batch norm's averages) are never moved; they see the passes
    at ``q``. Gains are at small and middle learning rates: of a quadratic with curvature L, heavy ball with momentum
    0.9 is stable up to lr L = 3.8, with ``steps_ahead`` 1 up to 1.26, with 2 up to 0.76, with 3 up to 0.54.

    A checkpoint taken while predicted holds both: the model's ``state_dict`` the predicted weights, the optimizer's the
    true ones, under ``"original"``; after loading both, :meth:`restore` puts the true ones back.

    Args:
        optimizer: any ``torch.optim.Optimizer``; it stays what schedulers, scalers and checkpoints are given.
        steps_ahead: how many steps to look ahead, finite and >= 0; need not be whole; 0 is the optimizer itself.

    Raises:
        TypeError: if the optimizer is none.
        ValueError: if ``steps_ahead`` is out of range.

    Differs from the authors' code: weights are cached here; a weight is moved if it has memories, whether or not it has
    a gradient; ``torch.optim.SGD`` leaves the first gradient undampened.
    """

    slug = "xgrad"
    paper = Paper("XGrad: Boosting Gradient-Based Optimizers With Weight Prediction", 2023, "2305.18240")
    vectors = ("xgrad-sgdm", "xgrad-adam", "xgrad-adamw")

    def __init__(self, optimizer: torch.optim.Optimizer, steps_ahead: float = 1.0) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"XGrad: optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
        if isinstance(steps_ahead, bool) or not isinstance(steps_ahead, (int, float)):
            raise TypeError(f"XGrad: steps_ahead must be a number, got {steps_ahead!r}")
        if not (math.isfinite(steps_ahead) and steps_ahead >= 0):
            raise ValueError(f"XGrad: steps_ahead must be finite and at least 0, got {steps_ahead!r}")
        self.optimizer, self.steps_ahead = optimizer, steps_ahead
        self._before: dict[Tensor, Tensor] = {}
        self._register()

    def _register(self) -> None:
        self.optimizer.register_step_pre_hook(self._before_step)
        self.optimizer.register_step_post_hook(self._after_step)
        self.optimizer.register_load_state_dict_pre_hook(_refuse_load)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Hooks are not copied with an optimizer."""
        self.__dict__.update(state)
        self._register()

    def predict(self) -> None:
        """Move the weights ahead.

        Raises:
            RuntimeError: if they are there already, or if gradients are released in the backward pass.
        """
        self._refuse_released()
        views.predict(self.optimizer, self._move)

    def restore(self) -> None:
        """Put the weights back bit for bit; without effect if they are there."""
        views.restore(self.optimizer)

    def predicted(self) -> AbstractContextManager[None]:
        """:meth:`predict` for the length of a block; :meth:`restore` also after an exception."""
        self._refuse_released()
        return views.predicted(self.optimizer, self._move)

    def _refuse_released(self) -> None:
        if getattr(self.optimizer, "is_released", False):
            raise RuntimeError("XGrad: a released optimizer steps in the backward pass, at the predicted weights")

    @property
    def is_predicted(self) -> bool:
        """Whether the weights are the predicted ones."""
        return views.is_predicted(self.optimizer)

    def step(self, closure: Callable[[], Any] | None = None, **given: Any) -> Any:
        """One step of the optimizer; ``closure`` (forward, backward, returns the loss) runs at the predicted weights.

        ``given`` goes to the optimizer's ``step``, such as ``loss``.

        Raises:
            RuntimeError: if the weights are still predicted ones; nothing has changed.
        """
        if closure is None:
            return self.optimizer.step(**given)

        def there() -> Any:
            with self.predicted():
                return closure()

        return self.optimizer.step(there, **given)

    def _move(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor | None:
        found = self._direction(p, state, group) if self.steps_ahead else None
        return None if found is None else found.mul(-self.steps_ahead * float(group["lr"]))

    def _direction(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor | None:
        """The direction of the last step; None before the first."""
        if not self._has_moments(group):
            return state.get(LAST)
        if type(self.optimizer) in BALLS:
            return self._memory("momentum_buffer", p, state, group)
        m, v = (self._memory(name, p, state, group) for name in ("exp_avg", "exp_avg_sq"))
        if m is None or v is None or not float(state["step"]):
            return None
        (b1, b2), t = map(float, group["betas"]), int(state["step"])
        direction: Tensor = (m / debias(b1, t)) / (v.sqrt() / math.sqrt(debias(b2, t)) + group["eps"])
        return direction

    def _has_moments(self, group: dict[str, Any]) -> bool:
        """Whether the memories of a group tell the direction of its last step."""
        kind = type(self.optimizer)
        return kind in ADAMS or (kind in BALLS and group["momentum"] != 0)

    def _memory(self, name: str, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor | None:
        """A memory of the optimizer, in whatever form it is kept; None if there is none yet."""
        if not isinstance(self.optimizer, Optimizer):
            return state.get(name)
        slots = self.optimizer.chain_of(group).for_shape(p.shape).slots
        slot = next(slot for slot in slots if slot.name == name)
        held = held_as(slot, state, p)
        return None if held is None else held.read(state, p)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self.is_predicted:
            raise RuntimeError("XGrad: the weights are predicted ones; restore() them before the step")
        self._before = {
            p: p.detach().clone()
            for group in optimizer.param_groups
            if self.steps_ahead and not self._has_moments(group)
            for p in group["params"]
        }

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                before, lr = self._before.pop(p, None), float(group["lr"])
                if before is not None and p.grad is not None and lr:
                    optimizer.state[p][LAST] = (before - p.detach()) / lr
        self._before.clear()


def _refuse_load(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    if views.is_predicted(optimizer):
        raise RuntimeError("XGrad: the weights are predicted ones; restore() them before a state is loaded")
