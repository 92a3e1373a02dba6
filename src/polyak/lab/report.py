"""What a comparison found, as plain data: the terminal table and the HTML report show exactly this."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from polyak.lab.campaign import Campaign
from polyak.lab.problems import LoadedProblem, Problem
from polyak.lab.spec import LOST, Record, Records, RunSpec, versions
from polyak.lab.statistics import Interval, median, order_interval, performance_profile

Curve = list[list[float | int | None]]  # rows of step, median, lowest, highest


@dataclass
class MethodReport:
    """One method on one problem. ``None`` stands for infinitely bad: a median of runs most of which diverged."""

    method: str
    setting: dict[str, Any] | None
    metrics: list[float | None]
    median: float | None
    low: float | None
    high: float | None
    coverage: float
    tuned: float | None
    untuned: float | None
    reached: int
    target_step: float | None
    state_bytes_per_parameter: float | None
    diverged: int
    failed: int
    trials_diverged: int
    trials_failed: int
    train_curve: Curve
    validation_curve: Curve
    trials: list[dict[str, Any]]
    timing: dict[str, float | None]
    as_good_as_best: bool = False


@dataclass
class ProblemReport:
    """One problem, its methods sorted from best to worst."""

    problem: str
    description: str
    metric: str
    higher_is_better: bool
    target: float | None
    steps: int | None
    methods: list[MethodReport]

    @property
    def coverage(self) -> float:
        """The least probability with which an interval of this problem covers its median."""
        return min((method.coverage for method in self.methods if method.metrics), default=0.0)


@dataclass
class Report:
    """A whole comparison. Only ``timing`` entries depend on the clock."""

    problems: list[ProblemReport]
    methods: list[str]
    trials: int
    seeds: int
    versions: dict[str, str]
    profiles: dict[str, list[tuple[float, float]]]
    errors: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-able data."""
        return asdict(self)

    def empty(self) -> list[str]:
        """The problems on which no method came to a result."""
        return [p.problem for p in self.problems if all(value is None for m in p.methods for value in m.metrics)]

    def distinct_errors(self) -> list[tuple[dict[str, Any], int]]:
        """One failed or crashed run for each different error, and how many runs it ended."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for error in self.errors:
            groups.setdefault(error["error"], []).append(error)
        return [(group[0], len(group)) for group in groups.values()]


def summarize(campaign: Campaign, records: Records) -> Report:
    """Turn the records of a finished comparison into its report."""
    problems = [_problem_report(campaign, loaded, records) for loaded in campaign.problems]
    return Report(
        problems=problems,
        methods=campaign.methods,
        trials=campaign.trials,
        seeds=campaign.seeds,
        versions=versions(),
        profiles=_profiles(campaign, problems),
        errors=_errors(records),
    )


def _problem_report(campaign: Campaign, loaded: LoadedProblem, records: Records) -> ProblemReport:
    problem = loaded.problem
    methods = [_method_report(campaign, loaded, method, records) for method in campaign.methods]
    methods.sort(key=lambda m: (_badness(problem, m.median), m.target_step or math.inf))
    if methods[0].median is not None:
        for report in methods:
            report.as_good_as_best = _overlaps(problem, report, methods[0])
    steps = campaign.steps_of(loaded)
    text = (problem.name, problem.description, problem.metric, problem.higher_is_better, problem.target, steps)
    return ProblemReport(*text, methods)


def _badness(problem: Problem, metric: float | None) -> float:
    if metric is None:
        return math.inf
    return -metric if problem.higher_is_better else metric


def _overlaps(problem: Problem, report: MethodReport, best: MethodReport) -> bool:
    """Whether the interval of a method reaches into the interval of the best one."""
    good_end, bad_end = (report.high, best.low) if problem.higher_is_better else (report.low, best.high)
    return good_end is not None and _badness(problem, good_end) <= _badness(problem, bad_end)


def _method_report(campaign: Campaign, loaded: LoadedProblem, method: str, records: Records) -> MethodReport:
    problem = loaded.problem
    trials = [(spec, records[spec.key]) for spec in campaign.trial_specs(loaded, method)]
    best = campaign.best_trial(loaded, method, records)
    finals = [records[spec.key] for spec in campaign.final_specs(loaded, method, records)]
    ended = [record for record in finals if record.status in ("finished", "diverged")]
    worst = -math.inf if problem.higher_is_better else math.inf
    values = [worst if record.metric is None else record.metric for record in ended]
    interval = order_interval(values) if values else Interval(worst, worst, worst, coverage=0.0)
    target_steps = [record.detail["target_step"] or math.inf for record in ended]
    return MethodReport(
        method=method,
        setting=None if best is None else best.setting,
        metrics=[record.metric for record in ended],
        median=_finite(interval.median),
        low=_finite(interval.low),
        high=_finite(interval.high),
        coverage=interval.coverage,
        tuned=None if best is None else records[best.key].metric,
        untuned=trials[0][1].metric if campaign.starts_with_defaults(method) else None,
        reached=sum(map(math.isfinite, target_steps)),
        target_step=_finite(median(target_steps)) if target_steps else None,
        state_bytes_per_parameter=_state_bytes(ended),
        diverged=_count(finals, "diverged"),
        failed=_count(finals, *LOST),
        trials_diverged=_count([record for _, record in trials], "diverged"),
        trials_failed=_count([record for _, record in trials], *LOST),
        train_curve=_curve([record.detail["train"] for record in ended]),
        validation_curve=_curve([record.detail["validation"] for record in ended]),
        trials=[_trial(spec, record) for spec, record in trials],
        timing=_timing(ended, [record for _, record in trials]),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _count(records: list[Record], *statuses: str) -> int:
    return sum(record.status in statuses for record in records)


def _state_bytes(records: list[Record]) -> float | None:
    if not records:
        return None
    detail = records[0].detail
    return float(detail["state_bytes"] / detail["parameters"])


def _trial(spec: RunSpec, record: Record) -> dict[str, Any]:
    return {"setting": spec.setting, "status": record.status, "metric": record.metric}


def _timing(finals: list[Record], trials: list[Record]) -> dict[str, float | None]:
    """Medians over the runs, but of compile times the largest: later runs of a worker find the compiled code."""
    timings = [record.detail["timing"] for record in finals]
    compiling = [record.detail["timing"]["compile_seconds"] for record in finals + trials if "timing" in record.detail]

    def values(name: str) -> list[float]:
        return [timing[name] for timing in timings if timing[name] is not None]

    seconds = values("target_seconds")
    seconds += [math.inf] * (len(timings) - len(seconds))
    return {
        "target_seconds": _finite(median(seconds)) if seconds else None,
        "step_ms": median(values("step_ms")) if values("step_ms") else None,
        "optimizer_ms": median(values("optimizer_ms")) if values("optimizer_ms") else None,
        "compile_seconds": max(compiling, default=None),
    }


def _curve(curves: list[Curve]) -> Curve:
    """Median and range over the runs, as far as at least half of them go."""
    points: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            if value is not None:
                points.setdefault(int(step or 0), []).append(value)
    enough = {step: values for step, values in points.items() if 2 * len(values) > len(curves)}
    return [[step, median(values), min(values), max(values)] for step, values in sorted(enough.items())]


def _profiles(campaign: Campaign, problems: list[ProblemReport]) -> dict[str, list[tuple[float, float]]]:
    """Profiles of the steps to the target, over the problems that have one and that somebody solved."""
    steps: dict[str, list[float]] = {method: [] for method in campaign.methods}
    for problem in problems:
        cost = {m.method: m.target_step or math.inf for m in problem.methods}
        if min(cost.values()) < math.inf:
            for method in campaign.methods:
                steps[method].append(cost[method])
    return performance_profile(steps) if len(next(iter(steps.values()))) > 1 else {}


def _errors(records: Records) -> list[dict[str, Any]]:
    """The runs that came to nothing, in an order that does not depend on when they were made."""
    lost = [record for record in records.values() if record.status in LOST]
    return [
        {
            "problem": record.problem,
            "method": record.method,
            "hyperparameters": record.setting,
            "seed": record.seed,
            "status": record.status,
            "error": record.detail.get("error", ""),
        }
        for record in sorted(lost, key=lambda r: (r.problem, r.method, r.split, r.seed, r.key))
    ]
