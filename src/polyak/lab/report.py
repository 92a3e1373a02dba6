"""What a comparison found, as plain data: the terminal, the page and the exports show exactly this.

It is made from the records of the runs and a :class:`~polyak.lab.described.Described` for each problem, and needs no
problem file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyak.lab.described import Described
from polyak.lab.evidence import Evidence
from polyak.lab.judging import judge
from polyak.lab.method_report import MethodReport, SlowRun, method_report, reported, slowest
from polyak.lab.spec import LOST, Record, Records, versions
from polyak.lab.statistics import performance_profile
from polyak.lab.verdict import Verdict

CURVE_DIGITS = 6
SLOWER = 1.2  # a step that takes this much longer than the best method's is worth a word


@dataclass
class ProblemReport:
    """One problem, its methods sorted from best to worst."""

    described: Described
    methods: list[MethodReport]
    verdict: Verdict
    sentence: str
    warnings: list[str]
    slowest: SlowRun | None

    @property
    def margin(self) -> float:
        """Differences up to here do not matter."""
        return self.verdict.margin

    def to_json(self) -> dict[str, Any]:
        """The stable interface: the reference, the method to use, and how every method compares, with its setting.

        Beside them the verdict's sentence, the confidence of the intervals, the number of looks that it allows for,
        and of a self-test the names that were called different from the reference (else null).
        """
        return {
            "reference": self.described.reference,
            "best": self.verdict.best,
            "sentence": self.sentence,
            "confidence": self.described.confidence,
            "looks": self.described.looks,
            "self_test": [one.method for one in self.verdict.different] if self.described.self_test else None,
            "methods": {method.method: _judged(method, self.described) for method in self.methods},
        }


@dataclass
class Report:
    """A whole comparison."""

    problems: list[ProblemReport]
    methods: list[str]
    versions: list[dict[str, str]]
    machines: list[str]
    profiles: dict[str, list[tuple[float, float]]]
    errors: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The verdicts by problem, in the form that stays."""
        return {problem.described.problem: problem.to_json() for problem in self.problems}

    def data(self) -> list[dict[str, Any]]:
        """All figures of the page, JSON-able: those of each problem's methods."""
        kept = ("problem", "metric", "higher_is_better", "target", "steps", "reference")
        return [
            {
                **{name: getattr(p.described, name) for name in kept},
                "margin": p.margin,
                "methods": [_figures(m) for m in p.methods],
            }
            for p in self.problems
        ]

    def empty(self) -> list[str]:
        """The problems on which no method came to a result."""
        results = {p.described.problem: [v for m in p.methods for v in m.metrics.values()] for p in self.problems}
        return [problem for problem, values in results.items() if all(value is None for value in values)]

    def distinct_errors(self) -> list[tuple[dict[str, Any], int]]:
        """One failed or crashed run for each different error, and how many runs it ended."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for error in self.errors:
            groups.setdefault(error["error"], []).append(error)
        return [(group[0], len(group)) for group in groups.values()]


def summarize(described: Sequence[Described], records: Records) -> Report:
    """Turn the records of a comparison, finished or not, into its report.

    Args:
        described: the problems, in the order in which they are shown.
        records: the runs; those of other problems and methods and those under way are left out.
    """
    ended = [record for record in records.values() if record.status != "running"]
    # The order in which runs were made must not show: neither in a figure's last digit nor in the order of dots.
    ended.sort(key=lambda r: (r.problem, r.method, r.split, r.seed, r.key))
    problems = [_problem_report(each, [r for r in ended if r.problem == each.problem]) for each in described]
    kept = [r for r in ended for each in described if r.problem == each.problem and r.method in each.methods]
    methods = list(dict.fromkeys(method for each in described for method in each.methods))
    for method in (method for problem in problems for method in problem.methods):
        method.place = methods.index(method.method)
    made = {tuple(sorted(r.versions.items())) for r in kept} or {tuple(sorted(versions().items()))}
    return Report(
        problems=problems,
        methods=methods,
        versions=[dict(each) for each in sorted(made)],
        machines=sorted(({r.detail.get("machine", "") for r in kept} | {each.machine for each in described}) - {""}),
        profiles=_profiles(problems),
        errors=[_error(record) for record in kept if record.status in LOST],
    )


def _problem_report(described: Described, records: list[Record]) -> ProblemReport:
    made = {m: [r for r in records if r.method == m] for m in described.methods}
    methods = [method_report(described, method, runs) for method, runs in made.items()]
    verdict = _judge(described, methods, made)
    places = {ranked.method: place for place, ranked in enumerate(verdict.ranking)}
    methods.sort(key=lambda m: (places.get(m.method, _place(described, m)), _cost(m)))
    words = verdict.self_test() if described.self_test else verdict.sentence(_notes(methods, verdict.best))
    warnings = [*_unmet(described, methods), *_warnings(verdict)]
    return ProblemReport(described, methods, verdict, words, warnings, slowest(records))


def _unmet(described: Described, methods: list[MethodReport]) -> Iterator[str]:
    """That nobody met the target, and how near the nearest came."""
    curves = [row for m in methods for row in m.validation_curve]
    if described.target is None or not curves or any(m.reached for m in methods):
        return
    nearest = max(row[3] for row in curves) if described.higher_is_better else min(row[2] for row in curves)
    target, metric = f"{described.target:.4g}", described.metric
    yield f"no run at a chosen setting met the target, validation {metric} {target}; the nearest came to {nearest:.4g}"


def _warnings(verdict: Verdict) -> list[str]:
    """Each warning once, with the methods that it is about."""
    about: dict[str, list[str]] = {}
    for name, texts in [(verdict.reference, verdict.warnings), *((j.method, j.warnings) for j in verdict.judgements)]:
        for text in texts:
            about.setdefault(text, []).append(name)
    return [f"{', '.join(names)}: {text}" for text, names in about.items()]


def _judge(described: Described, methods: list[MethodReport], runs: dict[str, list[Record]]) -> Verdict:
    """Ask for the verdict, and hand each method its judgement."""
    evidence = [_evidence(method, runs[method.method]) for method in methods]
    words = (described.problem, described.metric, described.higher_is_better, described.reference)
    found = judge(*words, evidence, described.margin, described.confidence, described.spaces)
    judged = {judgement.method: judgement for judgement in found.judgements}
    for method in methods:
        method.judgement = judged.get(method.method)
    return found


def _evidence(method: MethodReport, runs: list[Record]) -> Evidence:
    """A method as the verdict takes it: what an error ended says nothing of it."""
    trials = [trial for trial in method.trials if not trial.is_lost]
    return Evidence(
        method=method.method,
        trials=tuple(trial.evidence() for trial in trials),
        finals=method.metrics,
        scores={r.seed: r.detail["scores"] for r in reported(runs) if r.detail.get("scores")},
        chosen=trials.index(method.chosen) if method.chosen in trials else None,
        failure=method.failure,
    )


def _notes(methods: list[MethodReport], best: str | None) -> dict[str, str]:
    """What the sentence says beside the calls: the rate of the best method, and which steps take longer than its."""
    notes = {}
    times = {m.method: m.timing["step_ms"] for m in methods}
    own = times.get(best or "")
    for method in methods:
        time = times[method.method]
        if method.method == best and method.setting and "lr" in method.setting:
            notes[method.method] = f"lr {method.setting['lr']:.2g}"
        elif own and time and time > SLOWER * own:
            notes[method.method] = f"{time / own:.2g}x slower a step"
    return notes


def _place(described: Described, method: MethodReport) -> float:
    """Sorts by the paired difference, as the verdict does; what is infinite has a call all the same."""
    if method.method == described.reference and method.median is not None:
        return 0.0
    found = method.judgement
    if found is None or found.difference is None:
        return -math.inf if found and found.call == "better" else math.inf
    return -found.difference


def _cost(method: MethodReport) -> float:
    """The steps to the target, infinite where it was not met; an untrained model may meet it at 0."""
    return math.inf if method.target_step is None else method.target_step


def _profiles(problems: list[ProblemReport]) -> dict[str, list[tuple[float, float]]]:
    """Profiles of the steps to the target over the problems that have one, those that nobody solved among them."""
    aimed = [problem for problem in problems if problem.described.target is not None]
    if len(aimed) < 2:
        return {}
    costs = [{m.method: _cost(m) for m in problem.methods} for problem in aimed]
    common = [m.method for m in aimed[0].methods if all(m.method in cost for cost in costs)]
    if not any(math.isfinite(cost[method]) for method in common for cost in costs):
        return {}
    return performance_profile({method: [cost[method] for cost in costs] for method in common})


def _error(record: Record) -> dict[str, Any]:
    return {
        "problem": record.problem,
        "method": record.method,
        "hyperparameters": record.setting,
        "seed": record.seed,
        "status": record.status,
        "error": record.detail.get("error", ""),
    }


def _judged(method: MethodReport, described: Described) -> dict[str, Any]:
    """A method in the stable interface; the reference is its own equal, and a method without a figure is unsettled."""
    names = ("difference", "low", "high", "probability_of_improvement", "call", "seeds")
    itself = method.method == described.reference and method.median is not None
    plain = (0.0, 0.0, 0.0, 0.5, "equivalent") if itself else (None, None, None, None, "unsettled")
    values = dict(zip(names, (*plain, len(method.metrics)), strict=True))
    if method.judgement is not None:
        values = {name: getattr(method.judgement, name) for name in names}
    failures = [{"reason": each.reason, "step": each.step} for each in method.failures]
    return {**values, "setting": method.setting, "failures": failures}


def _figures(method: MethodReport) -> dict[str, Any]:
    """A method's figures for the page."""
    curves = ("train_curve", "validation_curve", "expected")
    return {
        **{name: value for name, value in vars(method).items() if name != "judgement"},
        "trials": [vars(trial) for trial in method.trials],
        "failures": [vars(failure) for failure in method.failures],
        **{name: [list(map(_rounded, row)) for row in getattr(method, name)] for name in curves},
    }


def _rounded(value: float) -> float:
    """Curves need no sixteen digits."""
    return float(f"{value:.{CURVE_DIGITS}g}")
