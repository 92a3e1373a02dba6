"""The server of asynchronous local updates: how an arrival enters the weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from polyak.declare import COUNT, NON_NEGATIVE, whole
from polyak.distributed.workers import squared_norm
from polyak.optim.engine.kernels import high

Rule = Literal["each", "buffered", "mean"]
Weight = Literal["one", "constant", "polynomial"]
Outcome = Literal["applied", "not finite", "too stale"]


def sync_weight(kind: Weight, num_workers: int, staleness: int = 0) -> float:
    """The weight of one arrival.

    ::

        one:         1
        constant:    sqrt(K) / K
        polynomial:  sqrt(K) / K / sqrt(1 + staleness)

    Args:
        kind: which; the last two are those of the notebook of arXiv:2401.09135.
        num_workers: K, at least 1.
        staleness: arrivals since the weights that the worker started from.

    Raises:
        ValueError: another kind, or a number that is not allowed.
    """
    if kind not in get_args(Weight):
        raise ValueError(f"weight must be one of {list(get_args(Weight))}, got {kind!r}")
    k = whole("num_workers", num_workers, "sync_weight", COUNT)
    tau = whole("staleness", staleness, "sync_weight", NON_NEGATIVE)
    return 1.0 if kind == "one" else math.sqrt(k) / k * (1.0 if kind == "constant" else (1 + tau) ** -0.5)


class Server:
    """Weights that an outer optimizer moves by what workers made of them.

    ::

        each:      at every arrival the outer optimizer steps with  weight * delta
        buffered:  at every K-th arrival it steps with the sum of  delta / K
        mean:      all that wait enter as one step with their mean (synchronous)

    A pseudo-gradient ``delta`` is what a worker started from less what it ended with. ``"each"`` with Nesterov and a
    ``constant`` or ``polynomial`` weight is the naive form; with :class:`polyak.distributed.DelayedNesterov` and
    weight ``one`` the method of arXiv:2401.09135; ``"mean"`` with Nesterov is DiLoCo (arXiv:2311.08105).

    A delta that is not finite is dropped with a warning, one that is staler than ``max_staleness`` without; both are
    counted in ``dropped`` and advance nothing. Sums and means of half precision are found in float32.

    Args:
        outer: any ``torch.optim.Optimizer``; its parameters are the weights.
        num_workers: K, at least 1.
        rule: how arrivals enter.
        weight: the weight of an arrival, of ``"each"`` alone; see :func:`sync_weight`.
        max_staleness: arrivals that may lie between a worker's start and its end; None: any.

    Raises:
        TypeError: an outer optimizer that is none, numbers that are no integers.
        ValueError: a rule, weight or number that is not allowed.
    """

    def __init__(
        self, outer: torch.optim.Optimizer, num_workers: int, rule: Rule = "each", weight: Weight = "one",
        max_staleness: int | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(outer, torch.optim.Optimizer):
            raise TypeError(f"Server: outer must be a torch.optim.Optimizer, got {type(outer).__name__}")
        if rule not in get_args(Rule):
            raise ValueError(f"Server: rule must be one of {list(get_args(Rule))}, got {rule!r}")
        if rule != "each" and weight != "one":
            raise ValueError(f"Server: weight must be 'one' with rule={rule!r}, which takes means, got {weight!r}")
        sync_weight(weight, num_workers)
        if max_staleness is not None:
            whole("max_staleness", max_staleness, "Server", NON_NEGATIVE)
        self.outer, self.num_workers, self.rule, self.weight = outer, num_workers, rule, weight
        self.max_staleness = max_staleness
        self.arrivals = 0
        self.dropped: dict[str, int] = {"not finite": 0, "too stale": 0}
        self._sums = [torch.zeros_like(p, dtype=high(p.dtype), requires_grad=False) for p in self.params]

    @property
    def params(self) -> list[Tensor]:
        """The weights."""
        return [p for group in self.outer.param_groups for p in group["params"]]

    def weights(self) -> list[Tensor]:
        """A copy of the weights, for a worker to start from."""
        return [p.detach().clone() for p in self.params]

    def receive(self, delta: Sequence[Tensor], version: int) -> Outcome:
        """Take in one arrival.

        Args:
            delta: a tensor for each parameter.
            version: ``arrivals`` at the time when the worker took its weights.

        Raises:
            ValueError: other shapes, or a version that never was; nothing has changed then.
        """
        return self.receive_all([delta], [version])[0]

    def receive_all(self, deltas: Sequence[Sequence[Tensor]], versions: Sequence[int]) -> list[Outcome]:
        """Take in several arrivals, in order; with ``rule="mean"`` as one step."""
        for delta, version in zip(deltas, versions, strict=True):
            self._check(delta, version)
        outcomes: list[Outcome] = []
        together: list[Sequence[Tensor]] = []
        for delta, version in zip(deltas, versions, strict=True):
            stale = self.arrivals - version
            outcomes.append(self._judged(delta, stale))
            if outcomes[-1] != "applied":
                self.dropped[outcomes[-1]] += 1
            elif self.rule == "mean":
                together.append(delta)
            else:
                self.apply(delta, stale)
        if together:
            self._step(
                [torch.stack([d.to(high(d.dtype)) for d in parts]).mean(0) for parts in zip(*together, strict=True)]
            )
            self.arrivals += len(together)
        return outcomes

    def apply(self, delta: Sequence[Tensor], staleness: int = 0) -> None:
        """Take in one arrival of a known staleness, unchecked."""
        self.arrivals += 1
        if self.rule == "each":
            scale = sync_weight(self.weight, self.num_workers, staleness)
            self._step([d * scale for d in delta])
            return
        torch._foreach_add_(
            self._sums, [d.to(s.dtype) / self.num_workers for d, s in zip(delta, self._sums, strict=True)]
        )
        if self.arrivals % self.num_workers == 0:
            self._step([s.clone() for s in self._sums])
            torch._foreach_zero_(self._sums)

    def _check(self, delta: Sequence[Tensor], version: int) -> None:
        shapes, own = [tuple(d.shape) for d in delta], [tuple(p.shape) for p in self.params]
        if shapes != own:
            raise ValueError(f"Server: delta must have the shapes {own}, got {shapes}")
        if not 0 <= version <= self.arrivals:
            raise ValueError(f"Server: version must be in [0, {self.arrivals}], the arrivals so far, got {version}")

    def _judged(self, delta: Sequence[Tensor], staleness: int) -> Outcome:
        if not math.isfinite(squared_norm(delta)):
            warnings.warn("Server: a delta is not finite and is dropped", UserWarning, stacklevel=4)
            return "not finite"
        if self.max_staleness is not None and staleness > self.max_staleness:
            return "too stale"
        return "applied"

    def _step(self, gradients: Sequence[Tensor]) -> None:
        for p, g in zip(self.params, gradients, strict=True):
            p.grad = g.to(p.dtype)
        self.outer.step()
        self.outer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The weights, the outer optimizer's state, the counts, and what an open period has summed."""
        return {
            "weights": self.weights(), "outer": self.outer.state_dict(), "arrivals": self.arrivals,
            "dropped": dict(self.dropped), "sums": [s.clone() for s in self._sums],
        }  # fmt: skip

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as the server that saved it.

        Raises:
            ValueError: weights of other shapes; nothing has changed then.
        """
        shapes, own = [tuple(w.shape) for w in state_dict["weights"]], [tuple(p.shape) for p in self.params]
        if shapes != own:
            raise ValueError(f"Server: the state_dict has weights of shapes {shapes}, here {own}")
        self.outer.load_state_dict(state_dict["outer"])
        for p, s, w, saved in zip(self.params, self._sums, state_dict["weights"], state_dict["sums"], strict=True):
            p.copy_(w)
            s.copy_(saved)
        self.arrivals, self.dropped = int(state_dict["arrivals"]), dict(state_dict["dropped"])
