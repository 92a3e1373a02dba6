"""Rules that choose rows by lengths and distances, and average those."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Annotated

import torch
from torch import Tensor

from polyak.declare import COUNT, Described, Paper
from polyak.federated._methods import Byzantine
from polyak.federated._rows import checked, mean_of, not_finite, smallest, squared_distances, squared_lengths, weighted
from polyak.federated.aggregators.base import Aggregator, Tolerant
from polyak.federated.aggregators.coordinates import Lower, Median
from polyak.federated.aggregators.diameter import least_diameter

KRUM = Paper("Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", 2017, "1703.02757")
SUBSETS = 200_000
"""Subsets that MVA tries at most."""
Squared = Annotated[bool, "sum the squared distances (the paper), or the distances (the code of MoNNA)"]
Pivot = Annotated[
    int | str,
    Described(
        "an index >= 0 or 'median'", lambda v: v == "median" or (isinstance(v, int) and v is not True and v >= 0)
    ),
    "the row around which the nearest are taken, or 'median' for the coordinate-wise median",
]


class Krum(Tolerant):
    """Krum: the row that is nearest to its neighbours (Blanchard et al., arXiv:1703.02757).

    ::

        z <- v_i, i = argmin_i sum of the n - f - 1 smallest ||v_i - v_j||^2, j != i

    The paper sums n - f - 2 of them; the authors of MoNNA and byzfl n - f - 1, as here.
    """

    slug = "krum"
    paper = KRUM
    vectors = ("robust-aggregators", "byzfl-peer")

    squared: Squared = True

    def _combined(self, rows: Tensor) -> Tensor:
        return rows[smallest(_krum_scores(rows, self.num_byzantine, self.squared), 1)[0]].clone()


class MultiKrum(Tolerant):
    """Multi-Krum: the mean of the n - f rows with the best scores of Krum (Blanchard et al., arXiv:1703.02757).

    ::

        z <- mean of the n - f rows with the smallest sums of their n - f - 1 smallest ||v_i - v_j||^2, j != i
    """

    slug = "multi_krum"
    paper = KRUM
    vectors = ("robust-aggregators", "byzfl-peer")

    squared: Squared = True

    def _combined(self, rows: Tensor) -> Tensor:
        scores = _krum_scores(rows, self.num_byzantine, self.squared)
        return mean_of(rows, smallest(scores, len(rows) - self.num_byzantine))


class NNA(Tolerant):
    """Nearest-neighbour averaging, the mixing of MoNNA (Farhadkhani et al., arXiv:2209.10931).

    ::

        z <- mean of the n - f rows nearest to y,   y = v_pivot;   again with y = z, ``rounds`` times in all

    The pivot is the worker's own vector, itself among the rows, at distance 0.
    """

    slug = "nna"
    paper = Paper("Robust Collaborative Learning with Linear Gradient Overhead", 2023, "2209.10931")
    vectors = ("robust-aggregators", "byzfl-peer", "monna")

    pivot: Pivot = 0
    rounds: Annotated[int, COUNT, "times that the average becomes the next pivot, and one"] = 1

    @torch.no_grad()
    def for_each(self, vectors: Tensor, received: Tensor, own: int) -> Tensor:
        """As of every aggregator; the distances of all vectors are computed once."""
        if self.rounds > 1 or not isinstance(self.pivot, int) or not_finite(vectors):
            return super().for_each(vectors, received, own)
        self.seen_by(own)._fits(received.shape[1])
        distances, kept = squared_distances(checked(vectors, "NNA")), received.shape[1] - self.num_byzantine
        weights = torch.zeros(len(received), len(vectors), dtype=torch.float64)
        for i, row in enumerate(received.cpu()):
            weights[i, row[smallest(distances[row[own], row], kept)]] = 1.0
        return weighted(vectors, weights, kept)

    def _fits(self, n: int) -> None:
        super()._fits(n)
        if isinstance(self.pivot, int) and self.pivot >= n:
            raise ValueError(f"NNA: pivot must be below the number of vectors, {n}, got {self.pivot}")

    def _of_checked(self, rows: Tensor, owner: str) -> Tensor:
        center = rows[self.pivot] if isinstance(self.pivot, int) else Median()._combined(rows)
        lengths = squared_lengths(rows, center)
        finite = bool(lengths.isfinite().all())  # then all rows are, and need no pass of their own
        return self._moved(rows, lengths) if finite else super()._of_checked(rows, owner)

    def _combined(self, rows: Tensor) -> Tensor:
        center = rows[self.pivot] if isinstance(self.pivot, int) else Median()._combined(rows)
        return self._moved(rows, squared_lengths(rows, center))

    def _moved(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """The last centre, from the squared distances to the first."""
        kept = len(rows) - self.num_byzantine
        center = mean_of(rows, smallest(lengths, kept))
        for _ in range(self.rounds - 1):
            center = mean_of(rows, smallest(squared_lengths(rows, center), kept))
        return center


class MDA(Tolerant):
    """Minimum diameter averaging (El Mhamdi et al., arXiv:1905.03853).

    ::

        z <- mean of the n - f rows whose largest distance is smallest

    Of equal subsets the lexicographically first counts, as in trying all. The search bisects over the distances
    and asks whether f rows can be taken away so that none is longer: 2^f steps at most, not n over f.
    """

    slug = "mda"
    paper = Paper("Genuinely Distributed Byzantine Machine Learning", 2020, "1905.03853")
    vectors = ("byzfl-peer",)

    def _combined(self, rows: Tensor) -> Tensor:
        return mean_of(rows, least_diameter(squared_distances(rows).tolist(), len(rows) - self.num_byzantine))


class MVA(Tolerant):
    """Minimum variance averaging: as MDA with the sum of squared distances (the code of arXiv:2209.10931).

    ::

        z <- mean of the n - f rows whose sum of ||v_i - v_j||^2 is smallest

    Tries all subsets, so it refuses more than 200,000; ``mda`` and ``multi_krum`` scale.
    """

    slug = "mva"
    paper = NNA.paper
    vectors = ("robust-aggregators",)

    def _fits(self, n: int) -> None:
        super()._fits(n)
        subsets = math.comb(n, self.num_byzantine)
        self._needs(subsets <= SUBSETS, n, f"so small that there are at most {SUBSETS:,} subsets (here {subsets:,})")

    def _combined(self, rows: Tensor) -> Tensor:
        distances = squared_distances(rows)
        subsets = torch.tensor(list(combinations(range(len(rows)), len(rows) - self.num_byzantine)))
        sums = [distances[s[:, :, None], s[:, None, :]].sum((1, 2)) for s in subsets.split(1024)]
        return mean_of(rows, [int(i) for i in subsets[smallest(torch.cat(sums), 1)[0]]])


class CGE(Aggregator):
    """Comparative gradient elimination: the shortest vectors (Gupta, Liu, Vaidya, arXiv:2008.04699).

    ::

        z <- mean of the n - f rows of smallest ||v_i||
    """

    slug = "cge"
    paper = Paper(
        "Byzantine Fault-Tolerant Distributed Machine Learning using D-SGD and Norm-Based Comparative Gradient "
        "Elimination (CGE)", 2021, "2008.04699",
    )  # fmt: skip
    vectors = ("robust-aggregators",)

    num_byzantine: Byzantine = 1

    def _fits(self, n: int) -> None:
        self._needs(self.num_byzantine < n, n, f"below the number of vectors, {n}")

    def _combined(self, rows: Tensor) -> Tensor:
        return mean_of(rows, smallest(squared_lengths(rows), len(rows) - self.num_byzantine))


class Aksel(Aggregator):
    """AKSEL: the half of the rows that is nearest to the median (Boussetta et al., OPODIS 2020).

    ::

        z <- mean of the ceil(n / 2) rows nearest to the coordinate-wise median

    Differs from the authors' code: that of MoNNA has ``lower=True``.
    """

    slug = "aksel"
    paper = Paper(
        "AKSEL: Fast Byzantine SGD",
        2020,
        url="https://drops.dagstuhl.de/entities/document/10.4230/LIPIcs.OPODIS.2020.8",
    )
    vectors = ("robust-aggregators",)

    lower: Lower = False

    def _combined(self, rows: Tensor) -> Tensor:
        center = Median(self.lower)._combined(rows)
        return mean_of(rows, smallest(squared_lengths(rows, center), (len(rows) + 1) // 2))


def _krum_scores(rows: Tensor, f: int, squared: bool) -> Tensor:
    distances = squared_distances(rows)
    distances = distances if squared else distances.sqrt()
    return distances.fill_diagonal_(-1.0).sort(1).values[:, 1 : len(rows) - f].sum(1)
