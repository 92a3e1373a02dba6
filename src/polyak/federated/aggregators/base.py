"""What every aggregator has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Self

from polyak.federated._methods import Byzantine, Frozen
from polyak.federated._rows import checked, not_finite


class Aggregator(Frozen):
    """Base of aggregators: called with the vectors of n workers, the rows of ``(n, d)``, they return one ``(d,)``.

    ::

        z <- what the rule makes of v_1 ... v_n

    The result is in the dtype of the vectors, which are never modified. Distances are over whole vectors; of rows
    equally good the first counts. An aggregator keeps nothing between calls and is frozen.

    A row that is not finite is a lie that shows. A rule that stands b of them (``num_byzantine`` at most, or below half
    of the rows where a rule has no such argument) is then what it is for the other n - b rows and b fewer liars, which
    for rules that choose by distance is what an infinite distance gives. ``mean`` stands none.
    """

    @torch.no_grad()
    def __call__(self, vectors: Tensor | Sequence[Tensor]) -> Tensor:
        """One vector.

        Args:
            vectors: ``(n, d)``, one row a worker, or n vectors of one length and dtype.

        Raises:
            TypeError: vectors that are no real floating numbers, or of several dtypes.
            ValueError: no vectors, too few for ``num_byzantine``, of unequal lengths, more that are not finite than the
                rule stands, or the pivot's; names the rows.
        """
        name = type(self).__name__
        rows = checked(vectors, name)
        self._fits(len(rows))
        return self._of_checked(rows, name)

    def seen_by(self, row: int) -> Aggregator:
        """The rule as the worker of a row uses it: around its own vector, if the rule is around that of a row."""
        return self.replaced(pivot=row) if isinstance(getattr(self, "pivot", None), int) else self

    @torch.no_grad()
    def for_each(self, vectors: Tensor, received: Tensor, own: int) -> Tensor:
        """What every worker makes of the vectors that it receives, ``(m, d)``.

        Args:
            vectors: all of them, ``(n, d)``.
            received: a row of indices of vectors for each worker, ``(m, q)``.
            own: where in each row the worker's own vector stands.

        Raises:
            ValueError: as a call.
        """
        seen = self.seen_by(own)
        return torch.stack([seen(vectors[row]) for row in received])

    def _of_checked(self, rows: Tensor, owner: str) -> Tensor:
        lost = not_finite(rows)
        return self._without(rows, self._left(rows, lost), lost) if lost else self._combined(rows)

    def _left(self, rows: Tensor, lost: list[int]) -> list[int]:
        """The rows that are finite; refuses more that are not than the rule stands."""
        if len(lost) > (stands := self._stands(len(rows))):
            allowed = f"but for {stands} of {len(rows)} at most" if stands else "all"
            raise ValueError(f"{type(self).__name__}: vectors must be finite, {allowed}; those of rows {lost} are not")
        return [i for i in range(len(rows)) if i not in lost]

    def _without(self, rows: Tensor, left: list[int], lost: list[int]) -> Tensor:
        return self._for_those_left(lost)._combined(rows[left])

    def _for_those_left(self, lost: list[int]) -> Self:
        """The rule for the rows that are left: fewer of them lie, and its own has another place."""
        changes: dict[str, int] = {}
        if (f := getattr(self, "num_byzantine", None)) is not None:
            changes["num_byzantine"] = f - len(lost)
        if isinstance(pivot := getattr(self, "pivot", None), int):
            if pivot in lost:
                raise ValueError(f"{type(self).__name__}: the vector of the pivot, row {pivot}, must be finite")
            changes["pivot"] = pivot - sum(i < pivot for i in lost)
        return self.replaced(**changes)

    def _stands(self, n: int) -> int:
        """The number of rows that may be not finite."""
        return int(getattr(self, "num_byzantine", (n - 1) // 2))

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
