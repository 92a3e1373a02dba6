"""A controller that sets SGD's lr and momentum from the spectrum of a batch's curvature."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, get_args

import torch

from polyak.declare import Paper, whole
from polyak.optim.groups import set_option
from polyak.optim.methods.sgd import SGD
from polyak.optim.spectrum.curvature import BatchCurvature
from polyak.optim.spectrum.lanczos import Spectrum, spectrum
from polyak.optim.spectrum.scaling import heavy_ball_optimum

Smallest = Literal["bulk", "min", "wd"]
BALLS = (SGD, torch.optim.SGD)
TOLERANCE = 1e-6
"""Ritz values below this share of the largest count as 0."""


class SpectrumLearner:
    """The on-the-fly learner of lr and momentum (Granziol et al., arXiv:2006.09092), around an SGD with momentum.

    ::

        l1, ln <- the largest and the smallest relevant eigenvalue of a batch's curvature, by Lanczos
        lr <- 4 / (sqrt(l1) + sqrt(ln))^2
        momentum <- ((sqrt(l1) - sqrt(ln)) / (sqrt(l1) + sqrt(ln)))^2

    Call :meth:`step` now and then, once an epoch in the paper, with a batch's curvature; it costs ``steps`` products. A
    batch's l1 is larger than that of all samples, and so the lr is on the safe side. ::

        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        learner = SpectrumLearner(optimizer)
        for epoch in range(epochs):
            learner.step(BatchCurvature(model, x, lambda y: cross_entropy(y, target)))
            ...

    An interpretation: how the authors choose ln could not be read, and no code of their learner is public.

    Args:
        optimizer: ``polyak.optim.SGD`` or ``torch.optim.SGD``, without dampening and Nesterov's momentum, for which
            other values are best; all groups get the same.
        steps: of Lanczos, >= 1.
        every: measure at the first and then at every ``every``-th call, >= 1.
        smallest: ``"bulk"`` the weighted mean of the positive Ritz values but the largest, or the weight decay if that
            is larger; ``"min"`` the smallest positive one; ``"wd"`` the weight decay.
        momentum: set it too; off sets lr = 2 / (l1 + ln) alone.
        safety: factor on the lr, > 0.
        smoothing: share of the old values in the new, in [0, 1).
        max_momentum: the largest momentum, in [0, 1).
        min_lr: the smallest lr.
        max_lr: the largest lr.

    Raises:
        ValueError: if an argument is out of range, or a group has a dampening or Nesterov's momentum.
        TypeError: if ``steps`` or ``every`` is no whole number, or the optimizer is another.
    """

    slug = "rmt-slq"
    paper = Paper(
        "Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training",
        2022, "2006.09092",
    )  # fmt: skip
    vectors = ("rmt-slq",)

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        steps: int = 20,
        every: int = 1,
        smallest: Smallest = "bulk",
        momentum: bool = True,
        safety: float = 1.0,
        smoothing: float = 0.0,
        max_momentum: float = 0.99,
        min_lr: float = 0.0,
        max_lr: float = math.inf,
    ) -> None:
        steps, every = whole("steps", steps, "SpectrumLearner"), whole("every", every, "SpectrumLearner")
        _require(smallest in get_args(Smallest), "smallest", smallest, f"one of {list(get_args(Smallest))}")
        _require(safety > 0 and math.isfinite(safety), "safety", safety, "positive and finite")
        _require(0 <= smoothing < 1, "smoothing", smoothing, "in [0, 1)")
        _require(0 <= max_momentum < 1, "max_momentum", max_momentum, "in [0, 1)")
        _require(0 <= min_lr <= max_lr, "min_lr", min_lr, f"in [0, max_lr = {max_lr}]")
        if not isinstance(optimizer, BALLS):
            kinds, got = " or ".join(f"{k.__module__.split('.')[0]}.optim.SGD" for k in BALLS), type(optimizer).__name__
            raise TypeError(f"SpectrumLearner: what it learns holds for momentum SGD, {kinds}; got {got}")
        _check_groups(optimizer)
        self.optimizer, self.lanczos_steps, self.every = optimizer, steps, every
        self.smallest, self.momentum, self.safety, self.smoothing = smallest, momentum, safety, smoothing
        self.max_momentum, self.min_lr, self.max_lr = max_momentum, min_lr, max_lr
        self._calls = 0

    def step(self, curvature: BatchCurvature) -> Spectrum | None:
        """Measure, where it is time, and set the groups' values.

        Where a product is not finite, or no eigenvalue positive, they stay as they are, with a warning.

        Returns:
            What was measured; None where nothing was.

        Raises:
            ValueError: a group as the constructor refuses it; nothing has changed.
        """
        _check_groups(self.optimizer)
        self._calls += 1
        if (self._calls - 1) % self.every:
            return None
        first = curvature.params[0]
        try:
            steps = min(self.lanczos_steps, curvature.size)
            found = spectrum(curvature, curvature.size, steps, dtype=first.dtype, device=first.device)
        except FloatingPointError as error:
            warnings.warn(f"SpectrumLearner: {error}; lr and momentum stay", UserWarning, stacklevel=2)
            return None
        ends = self._ends(found)
        if ends is None:
            warnings.warn("SpectrumLearner: no eigenvalue is positive; lr and momentum stay", UserWarning, stacklevel=2)
        else:
            self._set(*ends)
        return found

    def _ends(self, found: Spectrum) -> tuple[float, float] | None:
        """The largest and the smallest relevant eigenvalue; None if none is positive."""
        largest = float(found.nodes.max())
        if largest <= 0:
            return None
        decay = min(max(float(group.get("weight_decay", 0.0)) for group in self.optimizer.param_groups), largest)
        relevant = found.nodes > TOLERANCE * largest
        if self.smallest == "wd":
            return largest, decay
        if self.smallest == "min":
            return largest, float(found.nodes[relevant].min())
        bulk = relevant & (found.nodes < largest)
        if not bulk.any():
            return largest, largest
        nodes, weights = found.nodes[bulk], found.weights[bulk]
        return largest, max(float((nodes * weights).sum() / weights.sum()), decay)

    def _set(self, largest: float, smallest: float) -> None:
        lr, momentum = heavy_ball_optimum(largest, smallest)
        if not self.momentum:
            lr = 2 / (largest + smallest)
        lr, momentum = self.safety * lr, min(momentum, self.max_momentum)
        for group in self.optimizer.param_groups:
            set_option(group, "lr", min(max(self._mixed(group["lr"], lr), self.min_lr), self.max_lr))
            if self.momentum:
                set_option(group, "momentum", self._mixed(group["momentum"], momentum))

    def _mixed(self, old: float, new: float) -> float:
        return self.smoothing * float(old) + (1 - self.smoothing) * new

    def state_dict(self) -> dict[str, Any]:
        """The number of calls; lr and momentum are in the optimizer's."""
        return {"calls": self._calls}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the saved number of calls."""
        self._calls = int(state_dict["calls"])


def _check_groups(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        _require(not group["dampening"], "dampening", group["dampening"], "0: the buffer is undampened")
        _require(not group["nesterov"], "nesterov", group["nesterov"], "False: the values are those of the heavy ball")


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"SpectrumLearner: {name} must be {allowed}, got {value!r}")
