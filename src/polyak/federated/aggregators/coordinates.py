"""Rules that look at each coordinate by itself."""

from __future__ import annotations

import math

from torch import Tensor

from polyak.declare import Paper
from polyak.federated._rows import blocks, refuse_not_finite, sorted_columns
from polyak.federated.aggregators.base import Aggregator, Tolerant

ROBUST = Paper("Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", 2018, "1803.01498")


class Mean(Aggregator):
    """The plain mean: what is robust to nothing (McMahan et al., arXiv:1602.05629).

    ::

        z <- mean_i v_i
    """

    slug = "mean"
    paper = Paper("Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017, "1602.05629")
    vectors = ("robust-aggregators", "byzfl-peer")

    def _of_checked(self, rows: Tensor, owner: str) -> Tensor:
        found = rows.mean(0)
        # All entries are in it, so a second pass looks at them only then. A sum that is finite has finite parts.
        if not (math.isfinite(found.sum()) or bool(found.isfinite().all())):
            refuse_not_finite(rows, owner)
            found = (rows.double() / len(rows)).sum(0).to(rows.dtype)  # finite rows whose sum is not
        return found


class _Coordinatewise(Aggregator):
    def _combined(self, rows: Tensor) -> Tensor:
        found = rows.new_empty(rows.shape[1])
        for place, block in blocks(rows):
            found[place] = self._of_sorted(sorted_columns(block))
        return found

    def _of_sorted(self, s: list[Tensor]) -> Tensor:
        """The result from the coordinates in rising order."""
        raise NotImplementedError


class Median(_Coordinatewise):
    """The coordinate-wise median (Yin et al., arXiv:1803.01498).

    ::

        z_k <- median_i v_ik                                 the mean of the two middle ones for an even n
    """

    slug = "median"
    paper = ROBUST
    vectors = ("robust-aggregators", "byzfl-peer")

    def _of_sorted(self, s: list[Tensor]) -> Tensor:
        return _middle(s)


class TrimmedMean(_Coordinatewise, Tolerant):
    """The coordinate-wise trimmed mean (Yin et al., arXiv:1803.01498).

    ::

        z_k <- mean of v_1k ... v_nk without the f smallest and the f largest

    ``num_byzantine=0`` is the mean.
    """

    slug = "trimmed_mean"
    paper = ROBUST
    vectors = ("robust-aggregators", "byzfl-peer")

    def _of_sorted(self, s: list[Tensor]) -> Tensor:
        return _trimmed(s, self.num_byzantine)


class MeaMed(_Coordinatewise, Tolerant):
    """The mean around the median (Xie et al., arXiv:1802.10116).

    ::

        z_k <- mean of the n - f coordinates nearest to median_i v_ik

    Of two equally near the smaller counts. For an even n the median is the mean of the middle two, not the lower one.
    """

    slug = "meamed"
    paper = Paper("Generalized Byzantine-tolerant SGD", 2018, "1802.10116")
    vectors = ("robust-aggregators",)

    def _of_sorted(self, s: list[Tensor]) -> Tensor:
        return _mean_near(s, _middle(s), self.num_byzantine)


class Phocas(_Coordinatewise, Tolerant):
    """The mean around the trimmed mean (Xie et al., arXiv:1805.09682).

    ::

        z_k <- mean of the n - f coordinates nearest to the trimmed mean of v_1k ... v_nk

    Of two equally near the smaller counts.
    """

    slug = "phocas"
    paper = Paper("Phocas: dimensional Byzantine-resilient stochastic gradient descent", 2018, "1805.09682")
    vectors = ("robust-aggregators",)

    def _of_sorted(self, s: list[Tensor]) -> Tensor:
        return _mean_near(s, _trimmed(s, self.num_byzantine), self.num_byzantine)


def _middle(s: list[Tensor]) -> Tensor:
    low, high = s[(len(s) - 1) // 2], s[len(s) // 2]
    return low if len(s) % 2 else low / 2 + high / 2


def _sum(rows: list[Tensor]) -> Tensor:
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total


def _trimmed(s: list[Tensor], f: int) -> Tensor:
    return _sum(s[f : len(s) - f]) / (len(s) - 2 * f)


def _mean_near(s: list[Tensor], center: Tensor, f: int) -> Tensor:
    """The mean of the n - f sorted entries nearest to a centre; they are neighbours, so f comparisons find them."""
    kept = len(s) - f
    total = _sum(s[f:kept])
    for low, high in zip(s[:f], s[kept:], strict=True):
        total += high.where(high - center < center - low, low)
    return total / kept
