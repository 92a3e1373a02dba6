"""What a comparison is about, in words and numbers: all that a report needs to know beside the records of the runs.

It goes into the store as JSON, so that a report can be rendered later without the problem's file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from polyak.declare import Choice, Range
from polyak.lab.errors import BadInput
from polyak.lab.values import is_number

CONFIDENCE = 0.95
Space = Mapping[str, "Range | Choice"]


@dataclass(frozen=True)
class Timed:
    """The times of a step that were measured with each method alone, in turn.

    Args:
        rounds: how often each method had its turn.
        methods: for each method its ``setting``, and the medians ``step_ms`` and ``optimizer_ms``.
    """

    rounds: int
    methods: Mapping[str, Mapping[str, Any]]

    def times(self, method: str, setting: Mapping[str, Any] | None) -> dict[str, float | None]:
        """The times of a method at a setting; none where that was not measured."""
        known = self.methods.get(method)
        if known is None or json.dumps(known["setting"]) != json.dumps(setting):
            return {}
        return {name: known[name] for name in ("step_ms", "optimizer_ms")}


@dataclass(frozen=True)
class Described:
    """One problem of a comparison.

    Args:
        problem: what tables and charts call it.
        description: a sentence about it.
        metric: what its evaluation returns, in words.
        higher_is_better: whether a higher metric is better.
        target: the validation metric at which the problem counts as solved.
        steps: how many steps a run takes, where that is known.
        methods: the methods compared, in the order in which they were named.
        reference: the method that all others are compared to.
        spaces: for each method the range or the choices of every hyperparameter that is searched.
        margin: the difference, in units of the metric, that does not matter; ``None`` for the spread of the
            reference's seeds.
        command: what was typed, or the call that was made.
        date: when, as ``2026-01-31 12:00``.
        commit: the version of the problem's own code, empty where there is none.
        machine: where the runs were made.
        confidence: the confidence of every interval.
        looks: how often the verdict was looked at, at most, while seeds were added.
        self_test: whether the methods are one under several names.
        timed: the times of a step, where they were measured after the runs.
    """

    problem: str
    description: str
    metric: str
    higher_is_better: bool
    target: float | None
    steps: int | None
    methods: tuple[str, ...]
    reference: str
    spaces: Mapping[str, Space]
    margin: float | None
    command: str = ""
    date: str = ""
    commit: str = ""
    machine: str = ""
    confidence: float = CONFIDENCE
    looks: int = 1
    self_test: bool = False
    timed: Timed | None = None

    @property
    def percent(self) -> str:
        """The confidence of every interval in words."""
        return _percent(self.confidence)

    @property
    def looking(self) -> str:
        """What several looks make of the confidence, in words; empty where there was one alone."""
        if self.looks == 1:
            return ""
        together = _percent(1 - (1 - self.confidence) * self.looks)
        return (
            f"Seeds were added where calls were open, in at most {self.looks} looks; each is judged at {self.percent}, "
            f"so that all looks hold together at {together}."
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-able data from which :meth:`from_json` makes an equal object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Described:
        """What :meth:`to_json` wrote, also after a trip through JSON."""
        spaces = {
            method: {name: dimension(entry) for name, entry in space.items()}
            for method, space in data["spaces"].items()
        }
        timed = Timed(**data["timed"]) if data.get("timed") else None
        return cls(**{**data, "methods": tuple(data["methods"]), "spaces": spaces, "timed": timed})


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"


def check_levels(margin: float | None, confidence: float) -> None:
    """Refuse a margin or a confidence that cannot be."""
    if margin is not None and not (is_number(margin) and 0 <= margin < math.inf):
        raise BadInput(f"margin must be a finite number of at least 0, got {margin!r}")
    if not (is_number(confidence) and 0 < confidence < 1):
        raise BadInput(f"confidence must be between 0 and 1, got {confidence!r}")


def dimension(data: Mapping[str, Any]) -> Range | Choice:
    """A range or a choice from JSON-able data, which has lists where they have tuples."""
    if "values" in data:
        return Choice(tuple(tuple(v) if isinstance(v, list) else v for v in data["values"]))
    return Range(**data)
