"""MoNNA as pure functions: momentum at every worker, a local half step, nearest-neighbour averaging.

:class:`~polyak.federated.SimulatedPeers` runs all workers in one process, :class:`~polyak.federated.Peer` is one.
"""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from polyak.declare import COUNT, NON_NEGATIVE, Argument, Interval, Lr, Momentum, Range, WeightDecay, whole
from polyak.federated._methods import Byzantine, Frozen
from polyak.federated.aggregators import NNA, Aggregator


class Bound(NamedTuple):
    """What NNA among n workers does with f liars, and how many it could stand."""

    workers: int
    num_byzantine: int
    received: int
    averaged: int
    possible: int
    guaranteed: int

    def __str__(self) -> str:
        return (
            f"{self.workers} workers, {self.num_byzantine} of them liars: a worker receives {self.received} vectors "
            f"and averages {self.averaged}; it works with up to {self.possible} liars (n > 3 f), "
            f"and theory covers up to {self.guaranteed} (n > 5 f)"
        )


def bound(workers: int, num_byzantine: int) -> Bound:
    """The numbers of MoNNA for n workers and f liars; its text says them in a sentence.

    ::

        received n - f;   averaged n - 2 f;   possible if 3 f < n;   guaranteed if 5 f < n

    Raises:
        ValueError: f below 0, or so large that nearest-neighbour averaging cannot work.
    """
    n, f = whole("workers", workers, "bound"), whole("num_byzantine", num_byzantine, "bound", NON_NEGATIVE)
    possible = (n - 1) // 3
    if f > possible:
        raise ValueError(f"bound: num_byzantine must be at most {possible} of {n} workers (n > 3 f), got {f}")
    return Bound(n, f, n - f, n - 2 * f, possible, (n - 1) // 5)


class MoNNA(Frozen):
    """MoNNA: momentum and nearest-neighbour averaging of peers (Farhadkhani et al., arXiv:2209.10931).

    ::

        m_i <- momentum m_i + (1 - momentum) (g_i + weight_decay theta_i)         m_i = 0 at first; never sent
        x_i <- theta_i - lr_t m_i,   lr_t = lr / (1 + delta floor(t / delta) / decay)
        theta_i <- NNA of the n - f vectors that i receives, its own x_i among them: mean of the n - 2 f nearest to x_i

    Every worker receives the vectors of all f liars at worst. Weights are one vector; the distances are over all of it.

    Differs from the authors' code: that starts all workers on one aliased vector, which sums their first steps.
    """

    slug = "monna"
    paper = NNA.paper
    vectors = ("monna",)

    lr: Annotated[Lr, Range(1e-2, 1.0)] = 0.75
    momentum: Annotated[Momentum, Range(0.5, 0.999)] = 0.99
    num_byzantine: Byzantine = 1
    _: KW_ONLY
    decay: Annotated[float, Interval(high_open=True, low_open=True), "steps in which lr halves; 0 or less: never"] = 0.0
    delta: Annotated[int, COUNT, "steps between two changes of lr"] = 1
    weight_decay: Annotated[WeightDecay, Range(1e-5, 1e-1)] = 0.0
    rule: Annotated[Aggregator | None, Argument("the rule that mixes; None for NNA(num_byzantine)")] = None

    @property
    def mixing(self) -> Aggregator:
        """The rule that mixes."""
        return NNA(self.num_byzantine) if self.rule is None else self.rule

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, from 0 on."""
        return self.lr if self.decay <= 0 else self.lr / (1 + step // self.delta * self.delta / self.decay)

    def fits(self, workers: int) -> None:
        """Refuse a number of workers with which the rule cannot work, and warn of one that theory does not cover.

        Raises:
            ValueError: too few of them; says how many liars there may be.
        """
        guaranteed = bound(workers, self.num_byzantine).guaranteed
        self.mixing._fits(workers - self.num_byzantine)
        if self.num_byzantine > guaranteed:
            warnings.warn(
                f"MoNNA: num_byzantine is {self.num_byzantine} of {workers} workers; its guarantee holds up to "
                f"{guaranteed} (n > 5 f)",
                stacklevel=3,
            )

    def half_step(self, weights: Tensor, momenta: Tensor, gradients: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What is sent, and the momenta; for one worker or, as rows, for many. Writes nothing."""
        gradients = gradients.add(weights, alpha=self.weight_decay) if self.weight_decay else gradients
        momenta = momenta * self.momentum + gradients * (1 - self.momentum)
        return weights.add(momenta, alpha=-self.lr_at(step)), momenta

    def mixed(self, half: Tensor, heard: Tensor, sent: Tensor) -> Tensor:
        """The weights of all honest workers after mixing, ``(m, d)``.

        Args:
            half: what the honest workers send, ``(m, d)``.
            heard: for each the honest workers that it hears, itself last, ``(m, k)``.
            sent: what the liars send, ``(l, d)``, or to each honest worker something else, ``(m, l, d)``.
        """
        own = heard.shape[1] - 1
        if sent.ndim == 3:
            rule = self.mixing.seen_by(own)
            return torch.stack([rule(torch.cat([half[h], s])) for h, s in zip(heard, sent, strict=True)])
        liars = torch.arange(len(half), len(half) + len(sent), device=heard.device).expand(len(half), -1)
        return self.mixing.for_each(torch.cat([half, sent]), torch.cat([heard, liars], 1), own)


def draw_heard(honest: int, count: int, generator: torch.Generator) -> Tensor:
    """For each honest worker ``count`` of them, drawn without replacement, itself last: ``(honest, count)``.

    Raises:
        ValueError: fewer than one, or more than there are.
    """
    if not 1 <= count <= honest:
        raise ValueError(f"draw_heard: count must be in [1, {honest}], got {count}")
    found = []
    for i in range(honest):
        others = torch.randperm(honest - 1, generator=generator, device=generator.device)[: count - 1].cpu()
        found.append(torch.cat([others + (others >= i), torch.tensor([i])]))
    return torch.stack(found)
