"""Attacks without a search: turned round, copied, drawn, not finite, from flipped labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from polyak.declare import NON_NEGATIVE, Interval, Paper, Range
from polyak.federated._rows import squared_distances, squared_lengths
from polyak.federated.attacks.base import Attack, Memory


class SignFlip(Attack):
    """The mean with the other sign (Li et al., arXiv:1811.03761).

    ::

        b <- -mean_i x_i,   or scaled   -(m / f) mean_i x_i

    Scaled, the f liars outweigh the m honest vectors in a plain mean: their sum is zero.
    """

    slug = "sign_flip"
    paper = Paper("RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed Learning", 2019, "1811.03761")
    vectors = ("byzantine-attacks", "byzfl-peer", "monna")

    scaled: Annotated[bool, "times honest vectors a liar"] = False

    def _sent(self, rows: Tensor, f: int, memory: Memory, generator: torch.Generator | None) -> Tensor:
        return -(len(rows) / f if self.scaled else 1.0) * rows.mean(0)


class Mimic(Attack):
    """A copy of one honest vector, always the same or the most unusual (Karimireddy, He, Jaggi, arXiv:2006.09365).

    ::

        b <- x_target,   or learnt, b <- x_i,  i = argmax_i |<x_i, z>|
        mu <- t/(t+1) mu + 1/(t+1) mean_i x_i
        z <- t/(t+1) z + 1/(t+1) y / ||y||,   y = sum_i (x_i - mu) <x_i - mu, z>     t = 0, 1, ... steps - 1

    It is honest to the eye, and draws all to one worker's data. The direction z, of the largest spread, is the memory
    that :meth:`learn` makes, from z = x_1 - mean_i x_i on; nothing is learnt after ``steps`` rounds.

    Differs from the authors' code: that of MoNNA takes the absolute value of the products, which is no power iteration.
    """

    slug = "mimic"
    paper = Paper("Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", 2022, "2006.09365")
    vectors = ("byzantine-attacks", "byzfl-peer")

    target: Annotated[int, Interval(0, math.inf, high_open=True), "the honest row that is copied if none is learnt"] = 0
    steps: Annotated[int, Interval(0, math.inf, high_open=True), "rounds of learning; 0: copy the target"] = 0

    @torch.no_grad()
    def learn(self, memory: Memory | None, honest: Tensor | Sequence[Tensor]) -> Memory:
        """The direction, the running mean and the number of rounds, after one more."""
        if not self.steps:
            return {}
        rows = self._honest(honest).double()
        mean = rows.mean(0)
        if not memory:
            zero = torch.zeros((), dtype=torch.int64)
            memory = {"direction": rows[0] - mean, "mean": torch.zeros_like(mean), "round": zero}
        t = int(memory["round"])
        if t >= self.steps:
            return memory
        mean = torch.lerp(memory["mean"], mean, 1 / (t + 1))
        off = rows - mean
        pulled = (off @ memory["direction"]) @ off
        pulled = pulled / pulled.norm().clamp(min=torch.finfo(pulled.dtype).tiny)
        direction = torch.lerp(memory["direction"], pulled, 1 / (t + 1))
        return {"direction": direction, "mean": mean, "round": memory["round"] + 1}

    def _sent(self, rows: Tensor, f: int, memory: Memory, generator: torch.Generator | None) -> Tensor:
        if self.steps:
            along = (rows.double() @ memory["direction"]).abs().tolist()
            return rows[along.index(max(along))].clone()
        if self.target >= len(rows):
            raise ValueError(
                f"Mimic: target must be below the number of honest vectors, {len(rows)}, got {self.target}"
            )
        return rows[self.target].clone()


class NotFinite(Attack):
    """Numbers that are none: a single one in a mean spoils it (Blanchard et al., arXiv:1703.02757).

    ::

        b_k <- NaN, or infinity                                in every coordinate
    """

    slug = "not_finite"
    paper = Paper("Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", 2017, "1703.02757")

    value: Annotated[str, ("nan", "inf", "-inf"), "what is sent"] = "nan"

    def _sent(self, rows: Tensor, f: int, memory: Memory, generator: torch.Generator | None) -> Tensor:
        return rows.new_full(rows.shape[1:], float(self.value))


class Gaussian(Attack):
    """Noise, drawn anew by every liar (Blanchard et al., arXiv:1703.02757).

    ::

        b_1 ... b_f ~ Normal(mean, std^2)                      each coordinate by itself
    """

    slug = "gaussian"
    paper = NotFinite.paper

    mean: Annotated[float, Interval(low_open=True, high_open=True), "of each coordinate"] = 0.0
    std: Annotated[float, NON_NEGATIVE, Range(0.1, 100.0), "of each coordinate"] = 1.0

    def _sent(self, rows: Tensor, f: int, memory: Memory, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(f, rows.shape[1], generator=generator, dtype=rows.dtype, device=rows.device)
        return self.mean + self.std * noise


class MinMax(Attack):
    """As far off the mean as honest vectors are apart (Shejwalkar and Houmansadr, NDSS 2021).

    ::

        b <- mean_i x_i - gamma dev,   dev = sign(mean_i x_i), or std_i x_i over m - 1
        gamma: the largest with max_i ||b - x_i|| <= max_ij ||x_i - x_j||

    The length gamma is searched from ``start`` on, up and down by steps that are halved, to a ``tolerance``, as in
    the code of DP-BREM (arXiv:2306.12608); it stays below twice the start.
    """

    slug = "min_max"
    paper = Paper(
        "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated Learning", 2021,
        url="https://www.ndss-symposium.org/ndss-paper/manipulating-the-byzantine-optimizing-model-poisoning-attacks-and-"
        "defenses-for-federated-learning/",
    )  # fmt: skip
    vectors = ("dp-brem",)
    least: ClassVar[int] = 2

    deviation: Annotated[str, ("sign", "std"), "the direction dev"] = "std"
    start: Annotated[float, Interval(0.0, math.inf, True, True), "the length that is tried first"] = 10.0
    tolerance: Annotated[float, Interval(0.0, math.inf, True, True), "steps below it end the search"] = 1e-5

    def _sent(self, rows: Tensor, f: int, memory: Memory, generator: torch.Generator | None) -> Tensor:
        mean = rows.mean(0)
        dev = mean.sign() if self.deviation == "sign" else rows.std(0)
        return mean - self._length(rows, mean, dev) * dev

    def _length(self, rows: Tensor, mean: Tensor, dev: Tensor) -> float:
        """By the squared distance to each row, a parabola in gamma."""
        off = mean - rows
        square, slopes, starts = float(dev @ dev), (off @ dev).double(), squared_lengths(off).to(off.device)
        allowed = float(squared_distances(rows).max())
        found, gamma, step = 0.0, self.start, self.start
        while abs(found - gamma) > self.tolerance:
            step /= 2
            if float((starts - 2 * gamma * slopes).max()) + square * gamma**2 <= allowed:
                found, gamma = gamma, gamma + step
            else:
                gamma -= step
        return found


class LabelFlip(Attack):
    """Honest work on wrong labels: class c is taken for C - 1 - c (Tolpegin et al., arXiv:2007.08432).

    ::

        b <- mean_i g_i,   g_i the gradient of honest worker i on its batch with label -> (C - 1) - label

    It is called with those gradients; :func:`flipped` gives the labels. Where weights are sent, what the liars
    send is the mean of the honest ones after a step of ``lr`` along it: ``mean_i x_i - lr b``.
    """

    slug = "label_flip"
    paper = Paper("Data Poisoning Attacks Against Federated Learning Systems", 2020, "2007.08432")
    vectors = ("byzantine-attacks",)
    flips_labels: ClassVar[bool] = True

    def _sent(self, rows: Tensor, f: int, memory: Memory, generator: torch.Generator | None) -> Tensor:
        return rows.mean(0)


def flipped(labels: Tensor, classes: int) -> Tensor:
    """Labels counted from the other end: ``classes - 1 - labels``.

    Raises:
        ValueError: labels that are no whole numbers in ``[0, classes)``.
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"flipped: labels must be whole numbers, got {labels.dtype}")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"flipped: labels must be in [0, {classes}), got {int(labels.min())} to {int(labels.max())}")
    return classes - 1 - labels
