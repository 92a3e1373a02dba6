r"""Memories that keep values as they were: sliding windows and ring buffers.

A *window* ``(K, ...)`` holds the last ``K`` values, oldest first, and is shifted at every :func:`push`; right for a
few values that are read in order (Adams-Bashforth, HiGS). A *ring* ``(K, ...)`` is written in place at a moving pointer
and never shifted; right for many values whose order does not matter (MoCo's queue of keys). The state of a ring is the
buffer, the pointer to the next slot and the number of valid slots.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from polyak.memory._check import require

Pointer = TypeVar("Pointer", int, Tensor)
"""Position of the next slot: an int, or an integer 0-d or one-element tensor (never synchronised with the host)."""


def push(window: Tensor, value: Tensor) -> Tensor:
    """Append a value to a window and drop the oldest: ``[x1, ..., xK], x -> [x2, ..., xK, x]``.

    Args:
        window: ``(K, ...)``, oldest first, K >= 1.
        value: the shape of one entry, ``window.shape[1:]``; cast to the window's dtype.

    Returns:
        The new window, a new tensor.

    Raises:
        ValueError: on an empty window or a value of another shape.
    """
    require(window.ndim >= 1 and window.shape[0] >= 1, "window", tuple(window.shape), "of shape (K, ...) with K >= 1")
    require(value.shape == window.shape[1:], "value", tuple(value.shape), f"of shape {tuple(window.shape[1:])}")
    return torch.cat((window[1:], value.to(window.dtype).unsqueeze(0)))


def ring_write(buffer: Tensor, pointer: Pointer, values: Tensor) -> tuple[Tensor, Pointer]:
    r"""Write a batch of values at the pointer, wrapping round: slot :math:`(p + i) \bmod K` receives value :math:`i`.

    **Writes into** ``buffer`` (a queue is too large to copy at every step) and returns it with the new pointer
    :math:`(p + n) \bmod K`. Nothing is lost at the end of the buffer; of more than ``K`` values the last ``K`` are
    kept, in the slots they would have reached one by one. Values are detached. A read-out that a backward pass still
    needs has to be copied before writing.

    Args:
        buffer: ``(K, ...)``, K >= 1.
        pointer: slot of the next write, in 0..K-1: an int (checked), or an integer tensor with one element (not).
        values: ``(n, ...)``, n >= 0, entries shaped as the buffer's; cast to the buffer's dtype.

    Returns:
        ``(buffer, pointer)``, the pointer of the kind it came in.

    Raises:
        ValueError: on an empty buffer, entries of another shape, or an int pointer out of range.
        TypeError: if one is floating (or complex) and the other is not.
    """
    capacity, count = _check_ring(buffer, pointer, values)
    kept = min(count, capacity)
    slots = (pointer + torch.arange(count - kept, count, device=buffer.device)) % capacity
    buffer.index_copy_(0, slots, values[count - kept :].detach().to(buffer))
    return buffer, (pointer + count) % capacity


def ring_write_truncating(buffer: Tensor, pointer: int, values: Tensor) -> tuple[Tensor, int]:
    """Write a batch as lightly's memory bank does: what does not fit before the end is dropped.

    When the batch reaches the end of the buffer, its tail is lost and the pointer goes back to 0. Equal to
    :func:`ring_write` as long as the batch divides the capacity. **Writes into** ``buffer``.

    Args:
        buffer: ``(K, ...)``, K >= 1.
        pointer: slot of the next write, in 0..K-1.
        values: ``(n, ...)``, n >= 0, entries shaped as the buffer's; cast to the buffer's dtype.

    Returns:
        ``(buffer, pointer)``.

    Raises:
        ValueError: on an empty buffer, entries of another shape, or a pointer out of range.
        TypeError: if one is floating (or complex) and the other is not.
    """
    capacity, count = _check_ring(buffer, pointer, values)
    end = min(pointer + count, capacity)
    buffer[pointer:end] = values[: end - pointer].detach()
    return buffer, end % capacity


def ring_valid_count(count: int, added: int, capacity: int) -> int:
    r"""Number of slots that hold written values after another write: :math:`\min(n + m, K)`.

    Args:
        count: valid slots before, in 0..capacity (0 for a new ring).
        added: values written, >= 0.
        capacity: K >= 1.

    Raises:
        ValueError: if an argument is out of range.
    """
    require(capacity >= 1, "capacity", capacity, "at least 1")
    require(0 <= count <= capacity, "count", count, f"in 0..{capacity}")
    require(added >= 0, "added", added, "at least 0")
    return min(count + added, capacity)


def ring_in_order(buffer: Tensor, pointer: int | Tensor, count: int | None = None) -> Tensor:
    """Copy the valid entries out of a ring, oldest first.

    Args:
        buffer: ``(K, ...)``, K >= 1.
        pointer: slot of the next write, which is just after the newest entry. Only ints are checked.
        count: valid slots, in 0..K; ``None`` for a full ring.

    Returns:
        ``(count, ...)``, a new tensor.

    Raises:
        ValueError: on an empty buffer, or an int pointer or a count out of range.
    """
    capacity, _ = _check_ring(buffer, pointer, buffer)
    count = capacity if count is None else count
    require(0 <= count <= capacity, "count", count, f"in 0..{capacity}")
    slots = (pointer + torch.arange(-count, 0, device=buffer.device)) % capacity
    return buffer.index_select(0, slots)


def _check_ring(buffer: Tensor, pointer: int | Tensor, values: Tensor) -> tuple[int, int]:
    """Check a ring and values for it; return the capacity and the number of values."""
    require(buffer.ndim >= 1 and buffer.shape[0] >= 1, "buffer", tuple(buffer.shape), "of shape (K, ...) with K >= 1")
    capacity = buffer.shape[0]
    in_range = isinstance(pointer, Tensor) or 0 <= pointer < capacity
    require(in_range, "pointer", pointer, f"in 0..{capacity - 1}")
    fits = values.ndim == buffer.ndim and values.shape[1:] == buffer.shape[1:]
    require(fits, "values", tuple(values.shape), f"of shape (n, *{tuple(buffer.shape[1:])})")
    if _kind(values) != _kind(buffer):
        raise TypeError(f"values must have a dtype of the buffer's kind ({buffer.dtype}), got {values.dtype}")
    return capacity, values.shape[0]


def _kind(x: Tensor) -> tuple[bool, bool]:
    return x.is_floating_point(), x.is_complex()
