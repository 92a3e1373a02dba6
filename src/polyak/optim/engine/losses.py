"""The loss of a step: as it is given, checked, and averaged over the ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polyak.optim.engine.member import holds_nothing


class TakesLoss:
    """What an optimizer knows of losses.

    ``average_loss``: where ``torch.distributed`` is initialized, a loss that is read is averaged over all ranks, so
    that they take the same step. Set it to False where ranks train models of their own.
    """

    average_loss = True
    _loss: float | Tensor | None = None

    def set_loss(self, value: float | Tensor | None) -> None:
        """Give the loss of the next step beforehand, to trainers that call only ``step()``.

        A step, also a refused one, uses it and forgets it; so does None. A step that a GradScaler skips leaves it to
        the next, where a closure or ``loss=`` counts before it. A loss on an accelerator is waited for, to refuse one
        that is not finite.

        Args:
            value: a number, or a tensor of one element: the mean over all that the gradients are of, unscaled.

        Raises:
            TypeError: no number.
            ValueError: several numbers.
        """
        self._loss = None if value is None else one_number(value, type(self).__name__)

    def _given(self, closure: Any, loss: float | Tensor | None) -> float | Tensor | None:
        """The loss that comes with a step without closure; what is given to the step counts before what was set."""
        if closure is not None and loss is not None:
            raise TypeError(f"{type(self).__name__}.step() takes a closure or a loss, not both")
        return self._loss if loss is None else loss


def one_number(loss: Any, owner: str) -> Tensor:
    """A loss as a 0-d tensor without a graph."""
    if not isinstance(loss, Tensor):
        try:
            loss = torch.tensor(loss, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{owner}: the loss must be a number, got {loss!r}") from None
    if loss.is_complex():
        raise TypeError(f"{owner}: the loss must be a real number, got {loss.dtype}")
    if loss.numel() != 1:
        raise ValueError(f"{owner}: the loss must be one number, got shape {tuple(loss.shape)}; take the mean")
    whole: Tensor = loss.full_tensor() if hasattr(loss, "full_tensor") else loss
    return whole.detach().reshape(())


def loss_of_step(loss: float | Tensor, device: torch.device, average: bool, owner: str) -> Tensor:
    """The loss as rules read it: 0-d, float64, on the weights' device, the same on all ranks.

    Raises:
        RuntimeError: it is not finite. All ranks raise then.
    """
    found = one_number(loss, owner).double()
    if average and torch.distributed.is_available() and torch.distributed.is_initialized():
        found = found.to(device, copy=True)
        torch.distributed.all_reduce(found)
        found /= torch.distributed.get_world_size()
    if not holds_nothing(found) and not bool(torch.isfinite(found)):
        raise RuntimeError(f"{owner}: the loss is {float(found)}; nothing was changed")
    return found.to(device, non_blocking=True)
