"""A simulator of gradients that come late, as in pipelined and asynchronous training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyak.declare import NON_NEGATIVE, whole
from polyak.optim.engine.optimizer import Optimizer

Gradients = list[Tensor | None]


class Delayed:
    """Any optimizer, which steps with the gradients of ``delay`` steps ago (the setting of arXiv:2007.01397).

    ::

        p <- the optimizer's step from p with the gradients, weights and batch of ``delay`` calls ago

    Forward and backward pass then both saw the weights of that time (a consistent delay). In the first ``delay``
    calls there is no such gradient yet, and the weights stay. ``p.grad`` is the newest gradient before and after. ::

        late = Delayed(polyak.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), delay=8)
        for x, y in loader:
            late.zero_grad()
            loss_of(model(x), y).backward()
            late.step()

    ``delay`` may be set to another value on the way, up to ``buffer``. The last ``buffer + 1`` gradients are kept, each
    of the size of the model.

    Args:
        optimizer: any ``torch.optim.Optimizer``; schedulers are given this one.
        delay: steps, at least 0; 0 is the optimizer itself.
        buffer: the longest delay that may be set; None: ``delay``.

    Raises:
        TypeError: if the optimizer is none, or a number is not an integer.
        ValueError: if the delay is negative or longer than the buffer, or the optimizer reads the loss.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, delay: int, buffer: int | None = None) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"Delayed: optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
        if isinstance(optimizer, Optimizer) and any(
            "loss" in optimizer.chain_of(group).named for group in optimizer.param_groups
        ):
            raise ValueError(f"Delayed: {type(optimizer).__name__} reads the loss, and only gradients are held")
        given = ("delay", delay) if buffer is None else ("buffer", buffer)
        self._buffer = whole(*given, "Delayed", NON_NEGATIVE)
        self.optimizer = optimizer
        self.delay = delay
        self._held: deque[Gradients] = deque(maxlen=self._buffer + 1)

    @property
    def delay(self) -> int:
        """Steps between a gradient and the step that is made with it."""
        return self._delay

    @delay.setter
    def delay(self, value: int) -> None:
        delay = whole("delay", value, "Delayed", NON_NEGATIVE)
        if delay > self._buffer:
            raise ValueError(f"Delayed: delay must be at most the buffer of {self._buffer}, got {value}")
        self._delay = delay

    @property
    def buffer(self) -> int:
        """The longest delay that may be set."""
        return self._buffer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's."""
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let go the newest gradients; those that are held stay."""
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Keep the gradients present now, and step with those of ``delay`` calls ago if there are any.

        Args:
            closure: forward and backward pass, run once at the weights of now.

        Returns:
            What the closure returned; None without one.

        Raises:
            RuntimeError: what the optimizer refuses to step with; the gradients are not kept then, so that the call can
                be made again.
        """
        found = None
        if closure is not None:
            with torch.enable_grad():
                found = closure()
        params = self._params()
        newest = [p.grad for p in params]
        taken = [None if g is None else g.detach().clone() for g in newest]
        known = [*self._held, taken]
        if len(known) > self.delay:
            self._step_with(params, known[-1 - self.delay], newest)
        self._held.append(taken)
        return found

    def _step_with(self, params: list[Tensor], late: Gradients, newest: Gradients) -> None:
        # parameters that were added since have no gradient of that time
        late = late + [None] * (len(params) - len(late))
        try:
            for p, g in zip(params, late, strict=True):
                p.grad = g
            self.optimizer.step()
        finally:
            for p, g in zip(params, newest, strict=True):
                p.grad = g

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and the gradients held; loads where delay and buffer are the same."""
        held = [list(gradients) for gradients in self._held]
        return {
            "optimizer": self.optimizer.state_dict(), "delay": self.delay, "buffer": self.buffer, "gradients": held,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as the run that saved it.

        Raises:
            ValueError: another buffer, or gradients of other shapes; nothing has changed then.
        """
        if state_dict["buffer"] != self.buffer:
            raise ValueError(
                f"Delayed: the state_dict has a buffer of {state_dict['buffer']}, here it is {self.buffer}"
            )
        params = self._params()
        for gradients in state_dict["gradients"]:
            shapes = [None if g is None else tuple(g.shape) for g in gradients]
            wrong = [i for i, s in enumerate(shapes) if i >= len(params) or s not in (None, tuple(params[i].shape))]
            if wrong:
                raise ValueError(
                    f"Delayed: the gradient of parameter {wrong[0]} has shape {shapes[wrong[0]]}, not its own"
                )
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.delay = state_dict["delay"]
        self._held.clear()
        for gradients in state_dict["gradients"]:
            moved = zip(gradients, params, strict=False)
            self._held.append([None if g is None else g.to(p.device, p.dtype, copy=True) for g, p in moved])

    def _params(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]
