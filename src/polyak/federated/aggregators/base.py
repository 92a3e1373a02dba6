"""What every aggregator has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyak.federated._methods import Byzantine, Frozen
from polyak.federated._rows import checked, refuse_not_finite


class Aggregator(Frozen):
    """Base of aggregators: called with the vectors of n workers, the rows of ``(n, d)``, they return one ``(d,)``.

    ::

        z <- what the rule makes of v_1 ... v_n

    The result is in the dtype of the vectors, which are never modified. Distances are over whole vectors; of rows
    equally good the first counts. An aggregator keeps nothing between calls and is frozen.
    """

    @torch.no_grad()
    def __call__(self, vectors: Tensor | Sequence[Tensor]) -> Tensor:
        """One vector.

        Args:
            vectors: ``(n, d)``, one row a worker, or n vectors of one length and dtype.

        Raises:
            TypeError: vectors that are no real floating numbers, or of several dtypes.
            ValueError: no vectors, too few for ``num_byzantine``, of unequal lengths, not finite; names the row.
        """
        name = type(self).__name__
        rows = checked(vectors, name, finite=False)
        self._fits(len(rows))
        return self._of_checked(rows, name)

    def _of_checked(self, rows: Tensor, owner: str) -> Tensor:
        refuse_not_finite(rows, owner)
        return self._combined(rows)

    def _fits(self, n: int) -> None:
        """Refuse a number of vectors out of which the rule cannot make one."""

    def _combined(self, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def _needs(self, holds: bool, n: int, allowed: str) -> None:
        if not holds:
            f = getattr(self, "num_byzantine", None)
            raise ValueError(f"{type(self).__name__}: num_byzantine must be {allowed}, got {f} for {n} vectors")


class Tolerant(Aggregator):
    """Base of the rules that need a majority of honest vectors: ``2 * num_byzantine < n``.

    ::

        z <- what the rule makes of v_1 ... v_n, of which n - f count
    """

    num_byzantine: Byzantine = 1

    def _fits(self, n: int) -> None:
        self._needs(2 * self.num_byzantine < n, n, f"below half of the vectors, at most {(n - 1) // 2}")
