"""MKOR-H: MKOR as long as the loss falls fast, then its base optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import NON_NEGATIVE, Interval, Paper
from polyak.optim.engine.execution import Occasion, untraced
from polyak.optim.engine.layers import Layer
from polyak.optim.layerwise.base import COUNT
from polyak.optim.layerwise.mkor import MKOR

SWITCHED = "switched_at"
"""Key in the first group of the losses that were seen before the switch; absent before it."""
FAST, SLOW = 0.9, 0.99
"""Retention rates of the averages of the loss."""
WATCHED = (
    SWITCHED, "losses", "loss_start", "loss_last", "loss_trend", "loss_fast", "loss_slow", "best_rate", "slow_for",
)  # fmt: skip
"""What stands in the first group once losses were told."""


class MKORH(MKOR):
    """MKOR-H (Mozaffari et al., arXiv:2306.01685): MKOR until its help wears off, then the base optimizer for good.

    ::

        r_t <- 0.9 * r_(t-1) + 0.1 * (loss_(t-1) - loss_t)
        MKOR's step; but once r_t < knee_beta * (loss_1 - loss_t), the base optimizer's

    The paper says that the decrease of the loss decides and not how: an interpretation. ``switch="knee"`` is the knee
    point at which the authors lower learning rates, not before ``min_steps`` (0: ``10 * inv_freq``);
    ``switch="ratio"`` compares averages of the loss with retention 0.9 and 0.99: their relative distance stays for
    ``inv_freq`` steps under ``switch_ratio`` times the largest so far. The switch takes hooks and factors away. Give
    the loss: ``step(loss=loss)``, ``step(closure)``, or ``report(loss)`` before the step; reading it waits for the
    device. One that is not finite is passed over.

    Raises:
        ValueError: an argument outside what is allowed; a layer that is shared, sharded (FSDP2) or of a kind that is
            not understood, which is named.
        TypeError: no model is given.
    """

    slug = "mkor_h"
    family = "second order"
    evidence = "interpretation"
    paper = Paper("MKOR: Momentum-Enabled Kronecker-Factor-Based Optimizer Using Rank-1 Updates", 2023, "2306.01685")

    switch: Annotated[Literal["knee", "ratio"], "what ends the second order"] = "knee"
    knee_beta: Annotated[float, NON_NEGATIVE, "share of the decrease so far that a step must bring"] = 1e-3
    min_steps: Annotated[int, Interval(0), "losses before which no knee is seen; 0: 10 * inv_freq"] = 0
    switch_ratio: Annotated[float, NON_NEGATIVE, "share of the fastest decrease that a step must bring"] = 0.1

    _reported = False

    @property
    def is_on(self) -> bool:
        """Whether the layers are still preconditioned."""
        return SWITCHED not in self.param_groups[0]

    @untraced
    def _advance(self, loss: float | Tensor | None) -> None:
        self._reported = self._reported or loss is not None
        try:
            super()._advance(loss)
        finally:
            self._reported = False
        if loss is not None:
            self.report(loss)

    @contextmanager
    def around_step(self, occasion: Occasion) -> Iterator[None]:
        """As of MKOR, which must know the loss."""
        if occasion == "step" and self.is_on and not self._reported:
            raise RuntimeError(
                f"{self._owner()} reads the loss: call step(loss=loss), step(closure), or report(loss) before"
            )
        with super().around_step(occasion):
            yield

    def report(self, loss: float | Tensor) -> None:
        """Tell the loss of a step, where :meth:`step` does not get it."""
        self._reported = True
        if not self.is_on:
            return
        value = self._over_ranks(torch.as_tensor(loss).detach())
        if math.isfinite(value) and self._watch(value):
            self.switch_to_first_order()

    def _over_ranks(self, loss: Tensor) -> float:
        """The mean over the ranks, which must all decide alike."""
        if self._process_group is None:
            return float(loss)
        loss = loss.to(torch.float64).clone()
        torch.distributed.all_reduce(loss, group=self._process_group)
        return float(loss) / int(self._process_group.size())

    def _watch(self, loss: float) -> bool:
        """Take a loss in; whether the decrease has become slow. What is known stands in the first group."""
        group = self.param_groups[0]
        seen = int(group.get("losses", 0))
        group["losses"] = seen + 1
        return self._at_knee(group, loss, seen) if group["switch"] == "knee" else self._is_slow(group, loss, seen)

    def _at_knee(self, group: dict[str, Any], loss: float, seen: int) -> bool:
        if not seen:
            group |= {"loss_start": loss, "loss_last": loss, "loss_trend": 0.0}
            return False
        group["loss_trend"] = FAST * group["loss_trend"] + (1 - FAST) * (group["loss_last"] - loss)
        group["loss_last"] = loss
        won = group["loss_start"] - loss
        least = int(group["min_steps"]) or 10 * int(group["inv_freq"])
        return seen + 1 > least and won > 0 and group["loss_trend"] < group["knee_beta"] * won

    def _is_slow(self, group: dict[str, Any], loss: float, seen: int) -> bool:
        group["loss_fast"] = FAST * group.get("loss_fast", 0.0) + (1 - FAST) * loss
        group["loss_slow"] = SLOW * group.get("loss_slow", 0.0) + (1 - SLOW) * loss
        fast, slow = group["loss_fast"] / (1 - FAST ** (seen + 1)), group["loss_slow"] / (1 - SLOW ** (seen + 1))
        rate = (slow - fast) / max(slow, 1e-12)
        group["best_rate"] = max(group.get("best_rate", 0.0), rate)
        is_low = rate < group["switch_ratio"] * group["best_rate"]
        group["slow_for"] = group.get("slow_for", 0) + 1 if is_low else 0
        return bool(group["slow_for"] >= group["inv_freq"])

    def switch_to_first_order(self) -> None:
        """Go on with the base optimizer alone; hooks and factors are let go."""
        for layer in self._layers:
            state = self.state.get(layer.weight, {})
            for name in (*self.memory_names(self.group_of(layer)), COUNT):
                state.pop(name, None)
        self.param_groups[0][SWITCHED] = int(self.param_groups[0].get("losses", 0))
        self._listen()

    def _check_loaded(self, layer: Layer, values: dict[str, Any]) -> None:
        """A state that was saved behind the switch has no factors."""
        if COUNT in values:
            super()._check_loaded(layer, values)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of MKOR; the optimizer is where the saved one was, before the switch or behind it."""
        super().load_state_dict(state_dict)
        for name in WATCHED:
            if name not in state_dict["param_groups"][0]:
                self.param_groups[0].pop(name, None)
        self._listen()
