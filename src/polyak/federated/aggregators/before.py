"""What is done to the vectors before one is made of them: ``(n, d)`` in, ``(n, d)`` out."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from polyak.declare import POSITIVE, Paper, Range
from polyak.federated._methods import Byzantine
from polyak.federated._rows import smallest, squared_distances, squared_lengths, weighted
from polyak.federated.aggregators.base import Aggregator


class Preparation(Aggregator):
    """Base of what comes before an aggregator: ``trimmed_mean(nnm(vectors))``.

    ::

        v_1 ... v_n <- what it makes of v_1 ... v_n

    Rows that are not finite stay as they are, so that the rule behind sees as many vectors and takes them away itself.
    """

    def _without(self, rows: Tensor, left: list[int], lost: list[int]) -> Tensor:
        found = rows.clone()
        found[left] = super()._without(rows, left, lost)
        return found

    def _fits(self, n: int) -> None:
        f = getattr(self, "num_byzantine", 0)
        self._needs(f < n, n, f"below the number of vectors, {n}")


class NNM(Preparation):
    """Nearest-neighbour mixing: every vector becomes the mean around itself (Allouah et al., arXiv:2302.01772).

    ::

        v_i <- mean of the n - f rows nearest to v_i
    """

    slug = "nnm"
    paper = Paper("Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity", 2023, "2302.01772")
    vectors = ("robust-aggregators", "byzfl-peer")

    num_byzantine: Byzantine = 1

    def _combined(self, rows: Tensor) -> Tensor:
        kept = len(rows) - self.num_byzantine
        weights = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        for i, distances in enumerate(squared_distances(rows)):
            weights[i, smallest(distances, kept)] = 1.0
        return weighted(rows, weights, kept)


class Clipping(Preparation):
    """Clipping to a fixed length.

    ::

        v_i <- v_i min(1, c / ||v_i||)
    """

    slug = "clipping"
    paper = Paper("Learning from History for Byzantine Robust Optimization", 2021, "2012.10333")
    vectors = ("byzfl-peer",)

    max_norm: Annotated[float, POSITIVE, Range(0.1, 100.0), "largest length c"] = 2.0

    def _combined(self, rows: Tensor) -> Tensor:
        return _clipped(rows, squared_lengths(rows).sqrt(), self.max_norm)


class ARC(Preparation):
    """Adaptive robust clipping: the longest vectors are cut to the length of the next (arXiv:2405.14432).

    ::

        k <- floor(2 f / n (n - f));   v_i <- v_i min(1, c / ||v_i||),   c = the (k + 1)-th largest ||v_i||
    """

    slug = "arc"
    paper = Paper("Adaptive Gradient Clipping for Robust Federated Learning", 2025, "2405.14432")
    vectors = ("byzfl-peer",)

    num_byzantine: Byzantine = 1

    def _fits(self, n: int) -> None:
        self._needs(2 * self.num_byzantine < n, n, f"below half of the vectors, at most {(n - 1) // 2}")

    def _combined(self, rows: Tensor) -> Tensor:
        n, f = len(rows), self.num_byzantine
        lengths = squared_lengths(rows).sqrt()
        return _clipped(rows, lengths, float(lengths.sort().values[n - 1 - 2 * f * (n - f) // n]))


def _clipped(rows: Tensor, lengths: Tensor, limit: float) -> Tensor:
    factors = torch.where(lengths > limit, limit / lengths, 1.0)
    return rows * factors.to(rows)[:, None]
