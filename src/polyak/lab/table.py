"""The columns of a comparison's tables, for the terminal and the page, and the words that both use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polyak.lab.budget import in_words
from polyak.lab.method_report import MethodReport
from polyak.lab.pace import phase
from polyak.lab.report import ProblemReport
from polyak.lab.verdict import Judgement


@dataclass(frozen=True)
class Column:
    """A column: heading, meaning, its text for a method, and what sorts the best first where there is a contest."""

    heading: str
    meaning: str
    text: Callable[[MethodReport], str]
    rank: Callable[[MethodReport], tuple[float, ...] | None] = lambda method: None

    def best(self, methods: list[MethodReport]) -> set[str]:
        """The methods that rank first; nobody when the column is no contest or all are equal."""
        ranks = {m.method: rank for m in methods if (rank := self.rank(m)) is not None}
        if len(set(ranks.values())) < 2:
            return set()
        first = min(ranks.values())
        return {method for method, rank in ranks.items() if rank == first}


def results(problem: ProblemReport) -> list[Column]:
    """The columns that answer which method is better."""
    described = problem.described
    return [
        Column(f"test {described.metric}", "median over the seeds, and the lowest and highest of them", _metric),
        Column(
            f"difference to {described.reference}",
            f"of pairs with the same seed, positive is better; in brackets the {described.percent} interval",
            lambda m: _difference(m, described.reference),
        ),
        Column("call", f"better or worse, equivalent within {number(problem.margin)}, or not settled", call),
        Column("seeds", "runs at the chosen setting, and how many of them did not diverge", _seeds),
    ]


def costs(problem: ProblemReport) -> list[Column]:
    """The columns that say what a method costs."""
    target = problem.described.target
    step = Column(
        "step ms",
        f"median time of a training step, forward, backward and optimizer, {timed(problem)}",
        lambda m: number(m.timing["step_ms"], 3),
        lambda m: _least(m.timing["step_ms"]),
    )
    return [*(TARGET_COLUMNS if target is not None else []), step, *COST_COLUMNS]


def timed(problem: ProblemReport) -> str:
    """How the times of a step were measured, in words."""
    found = problem.described.timed
    if found is None:
        return "in the runs"
    return f"of each method alone, in turn with the others, {found.rounds} round{'s' * (found.rounds > 1)}"


def number(value: float | None, digits: int = 4) -> str:
    """A number to a few significant digits, or a dash."""
    if value is None:
        return "–"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < 1e6 else text


def setting(values: dict[str, Any] | None) -> str:
    """Hyperparameters as one would type them."""
    if values is None:
        return "none chosen: no trial has a figure"
    return ", ".join(f"{name}={_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_value, value))})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def call(method: MethodReport) -> str:
    """The call on a method, and how many more seeds would settle it."""
    found = method.judgement
    if found is None:
        return "–"
    return f"{found.call}: {found.to_settle}" if found.to_settle else found.call


def chosen(problem: ProblemReport) -> list[tuple[str, str, str]]:
    """For each method its name, its setting, and what tuning saw of that setting."""
    rows = []
    for method in problem.methods:
        trial = method.chosen
        seen = "" if trial is None else ", ".join(map(number, trial.validation.values()))
        edge = "" if not method.edges else f" ({', '.join(method.edges)} at the edge of its range)"
        rows.append((method.method, setting(method.setting) + edge, seen))
    return rows


def failures(problem: ProblemReport) -> list[tuple[str, str, int]]:
    """For each method its runs that came to nothing: reason, place and count."""
    rows = []
    for method in problem.methods:
        for (reason, step, tuning), count in method.counted().items():
            where = "" if step is None else f" at step {step}"
            rows.append((method.method, f"{reason}{where} ({'tuning' if tuning else 'at the chosen setting'})", count))
    return rows


def slowest(problem: ProblemReport) -> str:
    """The run that took far longer than others of its method, in words; empty where none did."""
    run = problem.slowest
    if run is None:
        return ""
    which = f"{run.method}, {phase(run.split, run.seed)}, {setting(run.setting)}"
    return f"the slowest run took {in_words(run.seconds)}, {run.times:.2g} times the median of its method's: {which}"


def error_title(error: dict[str, Any], count: int) -> str:
    """The heading of an error in :meth:`~polyak.lab.report.Report.distinct_errors`."""
    others = f" and {count - 1} more" if count > 1 else ""
    return f"{error['problem']}, {error['method']}, seed {error['seed']}{others}: {error['status']}"


def _metric(method: MethodReport) -> str:
    if not method.metrics:
        is_tuned = any(trial.first is not None for trial in method.trials)
        if not method.failures or (is_tuned and all(each.tuning for each in method.failures)):
            return "pending"
        return "failed" if any(each.status != "diverged" for each in method.failures) else "diverged"
    middle, *ends = (
        number(value, digits) if value is not None else "diverged"
        for value, digits in ((method.median, 4), (method.low, 3), (method.high, 3))
    )
    return middle if len(method.metrics) == 1 else f"{middle} [{ends[0]}, {ends[1]}]"


def _difference(method: MethodReport, reference: str) -> str:
    if method.method == reference:
        return "reference"
    return "–" if method.judgement is None else difference(method.judgement)


def difference(found: Judgement) -> str:
    """A paired difference and its interval."""
    if found.difference is None:
        return "–"
    low, high = ("–" if end is None else f"{end:+.2g}" for end in (found.low, found.high))
    return f"{found.difference:+.2g} [{low}, {high}]"


def _seeds(method: MethodReport) -> str:
    runs, lost = len(method.metrics), sum(value is None for value in method.metrics.values())
    return f"{runs - lost} of {runs}" if lost else str(runs)


def _target_steps(method: MethodReport) -> str:
    if method.reached == len(method.metrics):
        return number(method.target_step)
    return f"{number(method.target_step)} ({method.reached}/{len(method.metrics)})"


def _sooner(method: MethodReport, cost: float | None) -> tuple[float, ...] | None:
    """Ranks by the share of seeds that met the target, then by the cost.

    Who misses it more often is never the soonest, since a median leaves out the worst runs: 88 on 5 of 5 seeds is
    better than 72 on 3 of 5.
    """
    return None if cost is None else (-method.reached / len(method.metrics), cost)


def _least(value: float | None) -> tuple[float, ...] | None:
    return None if value is None else (value,)


TARGET_COLUMNS = [
    Column(
        "steps to target",
        "median over the seeds of the first evaluation that met the target on validation data",
        _target_steps,
        lambda m: _sooner(m, m.target_step),
    ),
    Column(
        "seconds to target",
        "training time until then, without evaluation and compiling",
        lambda m: number(m.timing["target_seconds"]),
        lambda m: _sooner(m, m.timing["target_seconds"]),
    ),
]
COST_COLUMNS = [
    Column(
        "optimizer ms",
        "the optimizer's part of a step",
        lambda m: number(m.timing["optimizer_ms"], 3),
        lambda m: _least(m.timing["optimizer_ms"]),
    ),
    Column(
        "compile s",
        "construction, and what the first steps took beyond ordinary ones: compiling and warming up, paid once",
        lambda m: "–" if m.timing["compile_seconds"] is None else f"{m.timing['compile_seconds']:.2f}",
    ),
    Column(
        "state B/param",
        "bytes of optimizer state per parameter",
        lambda m: number(m.state_bytes_per_parameter, 3),
        lambda m: _least(m.state_bytes_per_parameter),
    ),
    Column(
        "lost runs",
        "runs that diverged, failed or crashed, of all of them",
        lambda m: f"{len(m.failures)}/{m.runs}",
    ),
]
