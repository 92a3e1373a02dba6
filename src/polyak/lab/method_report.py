"""What the records of one method on one problem say, as plain data.

``None`` stands for infinitely bad: the metric of a run that diverged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from polyak.lab.described import Described
from polyak.lab.evidence import Trial, edges, expected_validation
from polyak.lab.spec import LOST, Record
from polyak.lab.statistics import median, time_to_target
from polyak.lab.values import finite
from polyak.lab.verdict import Judgement

Curve = list[list[float]]  # rows of step, median, lowest, highest
Setting = dict[str, Any]

BUDGETS = 30  # numbers of trials for which the expected validation metric is told
SLOW = 3.0
SLOW_SECONDS = 1.0  # less than this over the median is no news
SOUND = ("finished", "stopped")  # a hopeless trial is stopped on purpose, and has no metric


@dataclass
class Failure:
    """Why a run came to nothing, and at which of its steps where that is known."""

    reason: str
    step: int | None
    status: str
    tuning: bool


@dataclass
class TrialReport:
    """A setting that was tried: its validation metric by seed, of which the first is the tuning seed.

    ``last`` is the last one that its first run reported before it ended.
    """

    setting: Setting
    validation: dict[int, float | None]
    status: str
    last: float | None = None

    @property
    def first(self) -> float | None:
        """The metric on the tuning seed."""
        return next(iter(self.validation.values()))

    @property
    def is_lost(self) -> bool:
        """Whether an error ended it, which says nothing of the setting."""
        return self.status in LOST

    def evidence(self) -> Trial:
        """The trial as the verdict takes it."""
        return Trial(self.setting, tuple(self.validation.values()))


@dataclass
class MethodReport:
    """One method on one problem. Only ``timing`` depends on the clock."""

    method: str
    setting: Setting | None
    edges: list[str]
    metrics: dict[int, float | None]
    median: float | None
    low: float | None
    high: float | None
    trials: list[TrialReport]
    expected: list[list[float]]
    reached: int
    target_step: float | None
    state_bytes_per_parameter: float | None
    train_curve: Curve
    validation_curve: Curve
    failures: list[Failure]
    runs: int
    timing: dict[str, float | None]
    judgement: Judgement | None = None
    place: int = 0  # among the methods of the whole comparison; it decides the looks

    @property
    def chosen(self) -> TrialReport | None:
        """The trial whose setting was chosen."""
        return next((trial for trial in self.trials if trial.setting == self.setting), None)

    @property
    def failure(self) -> str | None:
        """Where errors ended tuning runs and no trial has a figure, the first of the errors."""
        if any(value is not None for trial in self.trials for value in trial.validation.values()):
            return None
        return next((each.reason for each in self.failures if each.tuning and each.status in LOST), None)

    def counted(self) -> dict[tuple[str, int | None, bool], int]:
        """How many runs ended for each reason, at each step, in tuning or not."""
        counts: dict[tuple[str, int | None, bool], int] = {}
        for each in self.failures:
            key = each.reason, each.step, each.tuning
            counts[key] = counts.get(key, 0) + 1
        return counts


def method_report(described: Described, method: str, runs: list[Record]) -> MethodReport:
    """The figures of one method, without its judgement.

    Args:
        described: the problem.
        method: its name.
        runs: its ended runs, sorted by seed.
    """
    trials = _trials([r for r in runs if r.split == "validation"])
    finals = reported(runs)
    worst = -math.inf if described.higher_is_better else math.inf
    metrics = {r.seed: r.metric for r in finals}
    values = [worst if value is None else value for value in metrics.values()]
    target_steps = [r.detail.get("target_step") for r in finals]
    setting = finals[0].setting if finals else None
    return MethodReport(
        method=method,
        setting=setting,
        edges=list(edges(described.spaces.get(method, {}), setting or {})),
        metrics=metrics,
        median=finite(median(values)) if values else None,
        low=finite(min(values)) if values else None,
        high=finite(max(values)) if values else None,
        trials=trials,
        expected=_expected(trials, described.higher_is_better),
        reached=sum(step is not None for step in target_steps),
        target_step=finite(time_to_target(target_steps)),
        state_bytes_per_parameter=_state_bytes(finals),
        train_curve=_curve([r.detail.get("train", []) for r in finals]),
        validation_curve=_curve([r.detail.get("validation", []) for r in finals]),
        failures=[_failure(r) for r in runs if r.status not in SOUND],
        runs=len(runs),
        timing={**_timing(finals, runs), **(described.timed.times(method, setting) if described.timed else {})},
    )


@dataclass(frozen=True)
class SlowRun:
    """A run that took far longer than the others of its method: how long, and how many times their median."""

    method: str
    setting: Setting
    split: str
    seed: int
    seconds: float
    times: float


def slowest(runs: Iterable[Record]) -> SlowRun | None:
    """The longest of the runs that took :data:`SLOW` times the median of their method's; None where none did.

    What compiling took is left out, and so are runs that ended early.
    """
    taken: dict[str, list[tuple[float, Record]]] = {}
    for run in runs:
        timing = run.detail.get("timing", {})
        if run.status == "finished" and timing.get("total_seconds") is not None:
            seconds = timing["total_seconds"] - (timing.get("compile_seconds") or 0.0)
            taken.setdefault(run.method, []).append((seconds, run))
    found = []
    for method, rows in taken.items():
        seconds, run = max(rows, key=lambda row: row[0])
        middle = median([each for each, _ in rows])
        if seconds > SLOW * middle and seconds - middle > SLOW_SECONDS:
            found.append(SlowRun(method, run.setting, run.split, run.seed, seconds, seconds / middle))
    return max(found, key=lambda run: run.seconds, default=None)


def reported(runs: list[Record]) -> list[Record]:
    """The runs that are reported: an error in the problem says nothing about the method."""
    return [r for r in runs if r.split == "test" and r.status not in LOST]


def _trials(records: list[Record]) -> list[TrialReport]:
    """The settings tried. All were run on one seed, some again on others; records come sorted by seed.

    A run on another seed that an error ended is left out: it says nothing about the setting.
    """
    trials: dict[str, TrialReport] = {}
    for record in records:
        values = [value for _, value in record.detail.get("validation", []) if value is not None]
        last = values[-1] if values else None
        trial = trials.setdefault(repr(record.setting), TrialReport(record.setting, {}, record.status, last))
        if record.status not in LOST or not trial.validation:
            trial.validation[record.seed] = record.metric
    return list(trials.values())


def _expected(trials: list[TrialReport], higher_is_better: bool) -> list[list[float]]:
    """Expected best validation metric after some numbers of trials; nothing where no trial has a figure.

    A trial that was stopped counts with the last metric before: without the hopeless ones all would seem better.
    """
    tried = [
        Trial(trial.setting, (trial.last if trial.status == "stopped" else trial.first,))
        for trial in trials
        if not trial.is_lost
    ]
    counts = _spread(len(tried))
    found = [expected_validation(tried, k, higher_is_better) for k in counts]
    return [[k, value] for k, value in zip(counts, found, strict=True) if value is not None]


def _spread(count: int) -> list[int]:
    """At most :data:`BUDGETS` numbers from 1 to ``count``, both ends among them."""
    return sorted({1 + round((count - 1) * i / (BUDGETS - 1)) for i in range(BUDGETS)}) if count else []


def _state_bytes(records: list[Record]) -> float | None:
    sizes = [r.detail for r in records if r.detail.get("parameters") and r.detail.get("state_bytes") is not None]
    return float(sizes[0]["state_bytes"] / sizes[0]["parameters"]) if sizes else None


def _failure(record: Record) -> Failure:
    lines = str(record.detail.get("error", "")).strip().splitlines()
    reason = record.detail.get("reason") or (lines[-1] if lines else record.status)
    return Failure(str(reason), record.detail.get("step"), record.status, record.split == "validation")


def _timing(finals: list[Record], runs: list[Record]) -> dict[str, float | None]:
    """Medians over the runs, but of compile times the largest: later runs of a worker find the compiled code."""

    def values(records: Iterable[Record], name: str) -> list[float]:
        times = [record.detail.get("timing", {}).get(name) for record in records]
        return [time for time in times if time is not None]

    seconds = [record.detail.get("timing", {}).get("target_seconds") for record in finals]
    middle = {name: values(finals, name) for name in ("step_ms", "optimizer_ms")}
    return {
        "target_seconds": finite(time_to_target(seconds)),
        **{name: median(found) if found else None for name, found in middle.items()},
        "compile_seconds": max(values(runs, "compile_seconds"), default=None),
    }


def _curve(curves: list[list[list[Any]]]) -> Curve:
    """Median and range over the runs, as far as at least half of them go."""
    points: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            if value is not None:
                points.setdefault(int(step), []).append(value)
    enough = {step: values for step, values in points.items() if 2 * len(values) > len(curves)}
    return [[step, median(values), min(values), max(values)] for step, values in sorted(enough.items())]
