"""A ring of the last keys, with what belongs to each of them (MoCo, arXiv:1911.05722; ALBEF, arXiv:2107.07651)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyak.memory import ring_in_order, ring_valid_count, ring_write, ring_write_truncating
from polyak.memory._check import require
from polyak.teachers import ranks

EMPTY = -100
"""What the slots of an integer payload hold before they are written."""

Payload = int | tuple[int, ...] | torch.dtype


class Queue(nn.Module):
    r"""The last ``size`` entries: slot :math:`(p + i) \bmod K` receives row :math:`i`, then :math:`p \leftarrow p + n`.

    Each payload is a buffer ``(size, *shape)`` under its name; all are written at the same slots. At the start
    floating payloads hold random unit vectors, as MoCo's and ALBEF's do, and integer ones -100; ``count`` says how many
    slots have been written. With torch.distributed the rows of all ranks are written, in the order of the ranks.

    Args:
        size: number of slots, >= 1.
        payloads: the name of each payload with its dimension, the shape of an entry, or an integer dtype (one number
            an entry, such as an id). A number alone is the dimension of one payload named ``"key"``.
        normalised: whether floating payloads are promised to be of unit length; a warning says, once, if they are not.
        truncate: at the end of the buffer drop what does not fit and begin again, as lightly does, instead of wrapping.
        persistent: whether the content is part of the state_dict. lightly's is not.

    Raises:
        ValueError: if an argument is out of range.

    Any batch size will do, where MoCo's and ALBEF's code demand one that divides the size; where it does, the results
    are equal.
    """

    position: Tensor

    def __init__(
        self,
        size: int,
        payloads: int | Mapping[str, Payload],
        *,
        normalised: bool = False,
        truncate: bool = False,
        persistent: bool = True,
    ) -> None:
        super().__init__()
        require(isinstance(size, int) and size >= 1, "size", size, "an int >= 1")
        shapes = {"key": payloads} if isinstance(payloads, int) else dict(payloads)
        require(len(shapes) >= 1, "payloads", payloads, "at least one payload")
        self.size, self.normalised, self.truncate = size, normalised, truncate
        self.names = tuple(shapes)
        self.pointer = 0
        """Slot of the next write."""
        self.count = 0
        """Slots that have been written."""
        self._warned = False
        for name, payload in shapes.items():
            self.register_buffer(name, self._initial(name, payload), persistent)
        self.register_buffer("position", torch.zeros(2, dtype=torch.long), persistent)
        self.register_load_state_dict_post_hook(_read_position)  # type: ignore[no-untyped-call]

    def _initial(self, name: str, payload: Payload) -> Tensor:
        if isinstance(payload, torch.dtype):
            integer = not payload.is_floating_point and not payload.is_complex
            require(integer, f"payloads[{name!r}]", payload, "an integer dtype, a dimension or a shape")
            return torch.full((self.size,), EMPTY, dtype=payload)
        shape = (payload,) if isinstance(payload, int) else payload
        require(all(n >= 1 for n in shape), f"payloads[{name!r}]", payload, "of dimensions >= 1")
        return nn.functional.normalize(torch.randn(self.size, *shape), dim=-1)

    @torch.no_grad()
    def enqueue(self, rows: Tensor | None = None, **more: Tensor) -> None:
        """Write the rows of this batch, and with torch.distributed those of all ranks.

        Args:
            rows: ``(n, *shape)`` for the first payload. Detached; of more than ``size`` the last are kept.
            **more: the same for the others, by name. No rows at all change nothing.

        Raises:
            ValueError: on a payload missing or unknown, of another shape or length, or NaN or infinite. Nothing has
                been changed then.
            TypeError: if a dtype is not of the buffer's kind.
        """
        given = {**({} if rows is None else {self.names[0]: rows}), **more}
        self._check(given)
        rows_of_ranks = ranks.sizes(given[self.names[0]])
        entries = {name: ranks.gather(given[name], rows_of_ranks) for name in self.names}
        self._check_values(entries)  # of all ranks, so that either all go on or none
        count = next(iter(entries.values())).shape[0]
        pointer = self.pointer
        for name, entry in entries.items():
            buffer = self.get_buffer(name)
            if self.truncate:
                _, pointer = ring_write_truncating(buffer, self.pointer, entry.to(buffer))
            else:
                _, pointer = ring_write(buffer, self.pointer, entry)
        written = min(count, self.size - self.pointer) if self.truncate else count
        self.pointer, self.count = pointer, ring_valid_count(self.count, written, self.size)
        self.position.copy_(torch.tensor([self.pointer, self.count]))

    def _check(self, given: dict[str, Tensor]) -> None:
        require(set(given) == set(self.names), "rows", sorted(given), f"given for each of {sorted(self.names)}")
        rows = {name: x.shape[0] if x.ndim else None for name, x in given.items()}
        require(len(set(rows.values())) == 1, "rows", rows, "as many for each payload")
        for name, x in given.items():
            buffer = self.get_buffer(name)
            require(x.shape[1:] == buffer.shape[1:], name, tuple(x.shape), f"of shape (n, *{tuple(buffer.shape[1:])})")
            if x.is_floating_point() != buffer.is_floating_point():
                raise TypeError(f"{name} must have a dtype of the buffer's kind ({buffer.dtype}), got {x.dtype}")

    def _check_values(self, entries: dict[str, Tensor]) -> None:
        for name, x in entries.items():
            if not x.is_floating_point():
                continue
            if not bool(x.isfinite().all()):
                raise ValueError(f"{name} must be finite to be enqueued, got NaN or infinity")
            lengths = x.float().norm(dim=-1) if self.normalised and not self._warned else x.new_ones(1)
            if bool(((lengths - 1).abs() > 1e-2).any()):
                self._warned = True
                warnings.warn(f"{name} is promised to be of unit length and is not", RuntimeWarning, stacklevel=3)

    def read(self, name: str | None = None, valid_only: bool = False) -> Tensor:
        """A copy of a payload, which later writes do not change: take it before the batch's own :meth:`enqueue`.

        Args:
            name: the payload; ``None`` is the first.
            valid_only: only slots that have been written, oldest first.

        Returns:
            ``(size, *shape)`` in the order of the slots, or ``(count, *shape)``.
        """
        buffer = self.get_buffer(self.names[0] if name is None else name)
        return ring_in_order(buffer, self.pointer, self.count) if valid_only else buffer.clone()

    def extra_repr(self) -> str:
        """What print shows."""
        return f"{self.size}, {', '.join(self.names)}, count={self.count}, truncate={self.truncate}"


def _read_position(queue: nn.Module, _: Any) -> None:
    """After a load: the numbers are kept beside the tensor so that no write has to wait for a device."""
    assert isinstance(queue, Queue)
    queue.pointer, queue.count = (int(n) for n in queue.position)
