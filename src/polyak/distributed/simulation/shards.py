"""Shares of the data: who is given which, and the learning rate that goes with each."""

from __future__ import annotations

import math
from typing import Any

import torch

from polyak.declare import COUNT, NON_NEGATIVE, POSITIVE, Hyper, whole


class Shards:
    """Shards with counters and cosine learning rates of their own (arXiv:2401.09135).

    ::

        a worker gets the shard visited least, one of several at random
        after u local steps on a shard of a budget of U, W of them warm-up:
            lr * (u + 1) / W  for u < W,  then  lr * (1 + cos(pi * min(1, (u - W) / (U - W)))) / 2

    Args:
        count: how many, at least 1.
        budget: local steps on each, U, at least 1.
        lr: the largest rate, above 0.
        warmup: local steps of warm-up, W, below the budget.
        seed: of the draws among shards visited equally often.

    Raises:
        TypeError: counts that are no integers.
        ValueError: a number that is not allowed.
    """

    def __init__(self, count: int, budget: int, lr: float, warmup: int = 0, seed: int = 0) -> None:
        self.count, self.budget = whole("count", count, "Shards", COUNT), whole("budget", budget, "Shards", COUNT)
        self.warmup = whole("warmup", warmup, "Shards", NON_NEGATIVE)
        Hyper("lr", 0.1, POSITIVE).check(lr, "Shards")
        if self.warmup >= self.budget:
            raise ValueError(f"Shards: warmup must be below the budget of {budget}, got {warmup}")
        self.lr = lr
        self.visits, self.steps = [0] * self.count, [0] * self.count
        self._generator = torch.Generator().manual_seed(seed)

    def take(self) -> int:
        """The shard for a worker that starts."""
        least = [i for i, visits in enumerate(self.visits) if visits == min(self.visits)]
        chosen = least[int(torch.randint(len(least), (), generator=self._generator))]
        self.visits[chosen] += 1
        return chosen

    def give_back(self, shard: int) -> None:
        """The worker that took it ended before it was done."""
        self.visits[shard] -= 1

    def done(self, shard: int, steps: int) -> None:
        """So many local steps more were made on a shard."""
        self.steps[shard] += steps

    def rates(self, shard: int, steps: int) -> list[float]:
        """The learning rates of the next local steps on a shard."""
        return [self._rate(u) for u in range(self.steps[shard], self.steps[shard] + steps)]

    def _rate(self, u: int) -> float:
        if u < self.warmup:
            return self.lr * (u + 1) / self.warmup
        return self.lr * (1 + math.cos(math.pi * min(1.0, (u - self.warmup) / (self.budget - self.warmup)))) / 2

    def state_dict(self) -> dict[str, Any]:
        """The counters and the state of the draws."""
        return {"visits": list(self.visits), "steps": list(self.steps), "generator": self._generator.get_state()}

    def check(self, state_dict: dict[str, Any]) -> None:
        """Refuse the state of another number of shards.

        Raises:
            ValueError: it is that.
        """
        if len(state_dict["visits"]) != self.count:
            raise ValueError(f"Shards: the state_dict has {len(state_dict['visits'])} shards, here {self.count}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as those that saved it.

        Raises:
            ValueError: another number of shards.
        """
        self.check(state_dict)
        self.visits, self.steps = list(state_dict["visits"]), list(state_dict["steps"])
        self._generator.set_state(state_dict["generator"])
