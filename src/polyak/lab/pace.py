"""How far a comparison is and how long it will take: what the terminal and the live page both say."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from polyak.lab.spec import Record, RunSpec


class Planned(Protocol):
    """Whoever knows how many runs a comparison has; the number may change while it runs."""

    @property
    def total(self) -> int:
        """How many runs there are, those that have ended among them."""


@dataclass
class UnderWay:
    """A run that has begun: when, and how far it was when it was last heard of."""

    spec: RunSpec
    began: float
    step: int = 0
    steps: int | None = None

    @property
    def title(self) -> str:
        """Which run it is."""
        return f"{self.spec.problem} {self.spec.method} {phase(self.spec.split, self.spec.seed)}"

    @property
    def place(self) -> str:
        """How far it was."""
        return f"step {self.step}{f'/{self.steps}' if self.steps else ''}"

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self.began

    @property
    def share(self) -> float:
        """The part of its steps that is done, where their number is known."""
        return self.step / self.steps if self.steps else 0.0


class Pace:
    """Counts the runs that began, went on and ended.

    Args:
        plan: what knows how many runs there are.
    """

    def __init__(self, plan: Planned) -> None:
        self._plan, self._begin = plan, time.monotonic()
        self.found = self.made = 0  # in the store already, and since
        self.under_way: dict[str, UnderWay] = {}

    def began(self, spec: RunSpec) -> UnderWay:
        """A run has begun."""
        self.under_way[spec.key] = UnderWay(spec, time.monotonic(), steps=spec.steps)
        return self.under_way[spec.key]

    def progress(self, spec: RunSpec, step: int, steps: int | None) -> None:
        """A run has come to a step."""
        if run := self.under_way.get(spec.key):
            run.step, run.steps = step, steps

    def ended(self, record: Record, here: bool) -> UnderWay | None:
        """A run has ended, made now or found; returns it where it was seen to begin."""
        self.found, self.made = self.found + (not here), self.made + here
        return self.under_way.pop(record.key, None)

    def grew(self, plan: Planned) -> None:
        """There are more runs now."""
        self._plan = plan

    @property
    def done(self) -> int:
        """How many runs have ended."""
        return self.found + self.made

    def words(self) -> str:
        """Runs, time and time left, which counts the runs under way by the share of their steps that is done."""
        total, seconds = self._plan.total, time.monotonic() - self._begin
        worked = self.made + sum(run.share for run in list(self.under_way.values()))
        if not worked:
            return f"{self.done}/{total}"
        left = max(0.0, total - self.found - worked) * seconds / worked
        return f"{self.done}/{total}, {clock(seconds)}, about {clock(left)} to go"


def phase(split: str, seed: int) -> str:
    """What a run is for, and its seed."""
    return f"tuning seed {seed}" if split == "validation" else f"test seed {seed}"


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
