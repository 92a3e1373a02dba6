"""What every attack has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from polyak.declare import whole
from polyak.federated._methods import Frozen
from polyak.federated._rows import checked, not_finite
from polyak.memory._dtype import at_least_float32

Memory = Mapping[str, Tensor]
"""What an attack has learnt, by name; empty for those that learn nothing."""


class Attack(Frozen):
    """Base of attacks: from the honest vectors ``(m, d)``, all of which it knows, what f liars send, ``(f, d)``.

    ::

        b_1 ... b_f <- what the attack makes of x_1 ... x_m

    The result is in the dtype of the vectors, which are never modified; one vector that all
    liars send is held once and seen f times (``expand``). An attack is frozen: what it learns over
    rounds is a memory that the caller keeps.
    """

    flips_labels: ClassVar[bool] = False
    """Whether it is called with gradients on flipped labels rather than with what honest workers send."""
    least: ClassVar[int] = 1
    """Honest vectors that it needs."""

    @torch.no_grad()
    def __call__(
        self,
        honest: Tensor | Sequence[Tensor],
        num_byzantine: int = 1,
        *,
        memory: Memory | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """What the liars send.

        Args:
            honest: ``(m, d)``, one row an honest worker, or m vectors of one length and dtype.
            num_byzantine: the number of liars f, at least 1.
            memory: what :meth:`learn` gave; an attack that learns does so from these vectors where there is none.
            generator: for what is drawn; the global one if None.

        Raises:
            TypeError: vectors that are no real floating numbers, or of several dtypes.
            ValueError: too few vectors, of unequal lengths, not finite; no liar.
        """
        rows, f = self._honest(honest), whole("num_byzantine", num_byzantine, type(self).__name__)
        known = self.learn(None, rows) if memory is None else memory
        sent = self._sent(at_least_float32(rows), f, known, generator).to(rows.dtype)
        return sent.expand(f, -1) if sent.ndim == 1 else sent

    @torch.no_grad()
    def learn(self, memory: Memory | None, honest: Tensor | Sequence[Tensor]) -> Memory:
        """The memory after one more round, made of that before it, which stays as it is; None before the first."""
        return {} if memory is None else memory

    def _honest(self, vectors: Tensor | Sequence[Tensor]) -> Tensor:
        name = type(self).__name__
        rows = checked(vectors, name)
        if len(rows) < self.least:
            raise ValueError(f"{name}: honest vectors must be at least {self.least}, got {len(rows)}")
        if lost := not_finite(rows):
            raise ValueError(f"{name}: honest vectors must be finite, those of rows {lost} are not")
        return rows

    def _sent(self, rows: Tensor, f: int, memory: Memory, generator: torch.Generator | None) -> Tensor:
        """One vector ``(d,)`` that all send, or one for each ``(f, d)``."""
        raise NotImplementedError
