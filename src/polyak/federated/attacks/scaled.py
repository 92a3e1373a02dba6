"""Attacks with one factor: fixed, by a formula, or the worst against a rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from statistics import NormalDist
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from polyak.declare import COUNT, NON_NEGATIVE, POSITIVE, Argument, Described, Interval, Paper, Range, whole
from polyak.federated.aggregators import Aggregator
from polyak.federated.attacks.base import Attack, Memory
from polyak.federated.attacks.search import largest
from polyak.memory._dtype import at_least_float32


def hidden_factor(n: int, num_byzantine: int) -> float:
    """The factor of ALIE with which f of n vectors still look like a majority (Baruch et al., arXiv:1902.06156).

    ::

        s = floor(n / 2 + 1) - f;   z = Phi^-1(min((n - f - s) / (n - f), 0.95))

    The bound of 0.95 is that of the code of DP-BREM (arXiv:2306.12608), which sends ``mean - 4 z std``:
    ``ALIE(z=-4 * hidden_factor(n, f))``.

    Raises:
        ValueError: unless ``0 <= f`` and ``2 f < n``, or with so few of them that no vector has to be outvoted.
    """
    if not 0 <= 2 * num_byzantine < n:
        raise ValueError(f"hidden_factor: num_byzantine must be in [0, {n} / 2), got {num_byzantine}")
    share = min((n - num_byzantine - (n // 2 + 1 - num_byzantine)) / (n - num_byzantine), 0.95)
    if share <= 0:
        raise ValueError(
            f"hidden_factor: n must leave a minority of honest vectors, got {n} with {num_byzantine} liars"
        )
    return NormalDist().inv_cdf(share)


class Scaled(Attack):
    """Base of attacks along one direction whose length is fixed or searched for.

    ::

        b(z),   z fixed, or argmax over z >= 0 of ||R(x_1 ... x_m, b(z) f times) - mean_i x_i||^2

    The search doubles its step while the distance grows, and then shrinks it around what it has found, ``evaluations``
    times in all. It goes to both sides, as the authors of MoNNA search; with ``two_sided=False, first_step=10,
    evaluations=20`` (and ``search_from=1`` for ``foe``, since its factor is z - 1) it is byzfl's. Where the rule R is
    around a worker's own vector, its mean over the honest workers counts.
    """

    _: KW_ONLY
    against: Annotated[Aggregator | None, Argument("the rule for which z is searched; None takes z as it is")] = None
    evaluations: Annotated[int, COUNT, "aggregations that the search may ask for"] = 16
    search_from: Annotated[float, NON_NEGATIVE, "the factor at which the search starts"] = 0.0
    first_step: Annotated[float, POSITIVE, "where the search looks first, beyond its start"] = 1.0
    shrink: Annotated[float, Interval(0.5, 1.0, True, True), "what the search multiplies its step with"] = 0.8
    two_sided: Annotated[bool, "search below what was found too"] = True

    @torch.no_grad()
    def factor(self, honest: Tensor | Sequence[Tensor], num_byzantine: int = 1) -> float:
        """The factor z against these honest vectors; arguments and errors of a call."""
        f = whole("num_byzantine", num_byzantine, type(self).__name__)
        return self._factor(at_least_float32(self._honest(honest)), f)

    def _factor(self, rows: Tensor, f: int) -> float:
        return self._fixed(len(rows), f) if self.against is None else self._searched(rows, f, self.against)

    def _fixed(self, m: int, f: int) -> float:
        raise NotImplementedError

    def _searched(self, rows: Tensor, f: int, rule: Aggregator) -> float:
        center = rows.mean(0)
        rules = [rule.seen_by(i) for i in range(len(rows))] if rule.seen_by(0) != rule.seen_by(1) else [rule]

        def harm(z: float) -> float:
            together = torch.cat([rows, self._with(z, rows).expand(f, -1)])
            got = torch.stack([seen(together) for seen in rules]).mean(0)
            return float((got - center).double().square().sum())

        return largest(harm, self.evaluations, self.first_step, self.shrink, self.two_sided, self.search_from)

    def _sent(self, rows: Tensor, f: int, memory: Memory, generator: torch.Generator | None) -> Tensor:
        return self._with(self._factor(rows, f), rows)

    def _with(self, z: float, rows: Tensor) -> Tensor:
        raise NotImplementedError


class ALIE(Scaled):
    """A little is enough: off the mean by a part of the spread, so that it looks honest (arXiv:1902.06156).

    ::

        b <- mean_i x_i + z std_i x_i                          each coordinate by itself; std over m - 1
    """

    slug = "alie"
    paper = Paper("A Little Is Enough: Circumventing Defenses For Distributed Learning", 2019, "1902.06156")
    vectors = ("byzantine-attacks", "byzfl-peer", "monna")
    least: ClassVar[int] = 2

    z: Annotated[
        float | str,
        Described(
            "a finite number or 'hidden'",
            lambda v: v == "hidden" or (isinstance(v, (int, float)) and v is not True and abs(v) < float("inf")),
        ),
        Range(0.1, 10.0),
        "standard deviations; 'hidden' for hidden_factor(m + f, f)",
    ] = 1.5

    def _fixed(self, m: int, f: int) -> float:
        return hidden_factor(m + f, f) if isinstance(self.z, str) else self.z

    def _with(self, z: float, rows: Tensor) -> Tensor:
        return rows.mean(0) + z * rows.std(0)


class FOE(Scaled):
    """Fall of empires: the mean, turned round (Xie et al., arXiv:1903.03936).

    ::

        b <- (1 - z) mean_i x_i

    IPM, inner-product manipulation with a factor tau, is its other name: ``z = 1 + tau``.
    """

    slug = "foe"
    paper = Paper("Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", 2019, "1903.03936")
    vectors = ("byzantine-attacks", "byzfl-peer", "monna")

    z: Annotated[float, NON_NEGATIVE, Range(0.5, 10.0), "share of the mean that is taken away"] = 1.1

    def _fixed(self, m: int, f: int) -> float:
        return self.z

    def _with(self, z: float, rows: Tensor) -> Tensor:
        return (1 - z) * rows.mean(0)
