"""Rules that move a centre towards the rows: the geometric median, and clipping around a centre."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from polyak.declare import COUNT, POSITIVE, Choice, Interval, Paper, Range
from polyak.federated._rows import blocks, checked, not_finite, squared_lengths, weighted
from polyak.federated.aggregators.base import Aggregator
from polyak.memory._dtype import at_least_float32


class GeometricMedian(Aggregator):
    """The geometric median by the smoothed Weiszfeld steps of RFA (Pillutla et al., arXiv:1912.13445).

    ::

        z <- 0;  T times:  w_i <- 1 / max(||z - v_i||, nu);   z <- sum_i w_i v_i / sum_i w_i
    """

    slug = "geometric_median"
    paper = Paper("Robust Aggregation for Federated Learning", 2022, "1912.13445")
    vectors = ("robust-aggregators", "byzfl-peer", "monna")

    nu: Annotated[float, POSITIVE, Range(1e-6, 1.0), "smallest distance that counts"] = 0.1
    steps: Annotated[int, COUNT, Choice((3, 8, 32)), "number of Weiszfeld steps T"] = 3

    def _combined(self, rows: Tensor) -> Tensor:
        center = None
        for _ in range(self.steps):
            weights = 1 / squared_lengths(rows, center).sqrt().clamp(min=self.nu)
            center = weighted(rows, weights / weights.sum())
        assert center is not None
        return center


class CenteredClipping(Aggregator):
    """Centred clipping (Karimireddy et al., arXiv:2012.10333), started at zero or at a row.

    ::

        z <- 0, or v_pivot;   L times:   z <- z + mean_i (v_i - z) min(1, tau / ||v_i - z||)

    With a pivot it is self-centred clipping (He et al., arXiv:2202.01545). :meth:`around` starts at any point, such as
    the last result: that memory is the caller's, an aggregator has none.
    """

    slug = "centered_clipping"
    paper = Paper("Learning from History for Byzantine Robust Optimization", 2021, "2012.10333")
    vectors = ("robust-aggregators", "byzfl-peer", "monna")

    tau: Annotated[float, POSITIVE, Range(0.1, 100.0), "largest length of a difference"] = 10.0
    steps: Annotated[int, COUNT, Choice((1, 3, 5)), "number of steps L"] = 1
    pivot: Annotated[int | None, Interval(0), "the row to start at; None starts at zero"] = None

    def _fits(self, n: int) -> None:
        if self.pivot is not None and self.pivot >= n:
            raise ValueError(f"CenteredClipping: pivot must be below the number of vectors, {n}, got {self.pivot}")

    def _combined(self, rows: Tensor) -> Tensor:
        return self._around(rows, rows.new_zeros(rows.shape[1]) if self.pivot is None else rows[self.pivot])

    @torch.no_grad()
    def around(self, vectors: Tensor, center: Tensor) -> Tensor:
        """As a call, started at ``center`` ``(d,)`` in the vectors' dtype, which is not modified.

        Raises:
            ValueError: as a call, and a centre of another shape or dtype, or not finite.
        """
        rows = checked(vectors, type(self).__name__)
        if lost := not_finite(rows):
            rows = rows[self._left(rows, lost)]
        if center.shape != rows.shape[1:] or center.dtype != rows.dtype or not bool(center.isfinite().all()):
            raise ValueError(
                f"CenteredClipping: center must be finite, {tuple(rows.shape[1:])} and {rows.dtype}, "
                f"got {tuple(center.shape)} and {center.dtype}"
            )
        return self._around(rows, center.detach())

    def _around(self, rows: Tensor, center: Tensor) -> Tensor:
        center = at_least_float32(center).clone()
        for _ in range(self.steps):
            lengths = squared_lengths(rows, center).sqrt()
            factors = self.tau / lengths.clamp(min=self.tau) / len(rows)
            for place, block in blocks(rows):
                center[place] += factors.to(block) @ (block - center[place])
        return center.to(rows.dtype)
