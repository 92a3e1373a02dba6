"""The columns of a comparison's table, for the terminal and the HTML report, and the sentence above it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polyak.lab.report import MethodReport, ProblemReport

SEPARABLE = 0.9  # an interval that covers the median with less than this says little about which method is better


@dataclass(frozen=True)
class Column:
    """A column: heading, meaning, its text for a method and the number by which the best is found."""

    heading: str
    meaning: str
    text: Callable[[MethodReport], str]
    number: Callable[[MethodReport], float | None] = lambda method: None
    higher_is_better: bool = False

    def best(self, methods: list[MethodReport]) -> set[str]:
        """The methods with the best number; nobody when the column is no contest or all are equal."""
        numbers = {m.method: number for m in methods if (number := self.number(m)) is not None}
        if len(set(numbers.values())) < 2:
            return set()
        best = (max if self.higher_is_better else min)(numbers.values())
        return {method for method, number in numbers.items() if number == best}


def columns(problem: ProblemReport) -> list[Column]:
    """The columns for one problem."""
    failed = Column(
        "failed",
        "runs that an error ended, tuning included; they count for nothing",
        lambda m: str(m.failed + m.trials_failed),
    )
    somebody_failed = any(method.failed or method.trials_failed for method in problem.methods)
    return [*_result_columns(problem), *COST_COLUMNS, *([failed] if somebody_failed else [])]


def _result_columns(problem: ProblemReport) -> list[Column]:
    return [
        Column(
            f"test\n{problem.metric}",
            "median over the seeds, and an order-statistic interval for it",
            _metric,
            lambda m: m.median,
            problem.higher_is_better,
        ),
        Column(
            "steps to\ntarget",
            "median over the seeds of the first evaluation that met the target on validation data",
            _target_steps,
            lambda m: m.target_step,
        ),
        Column(
            "seconds\nto target",
            "training time until then, without evaluation and compiling",
            lambda m: number(m.timing["target_seconds"]),
            lambda m: m.timing["target_seconds"],
        ),
    ]


def number(value: float | None, digits: int = 4) -> str:
    """A number to a few significant digits, or a dash."""
    if value is None:
        return "–"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < 1e6 else text


def setting(values: dict[str, Any] | None) -> str:
    """Hyperparameters as one would type them."""
    if values is None:
        return "none: no trial ended with a figure"
    return ", ".join(f"{name}={_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_value, value))})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _metric(method: MethodReport) -> str:
    if not method.metrics:
        return "failed" if method.failed or method.trials_failed else "diverged"
    ends = [number(end) if end is not None else "diverged" for end in (method.low, method.high)]
    middle = number(method.median) if method.median is not None else "diverged"
    return middle if len(method.metrics) == 1 else f"{middle} [{ends[0]}, {ends[1]}]"


def _target_steps(method: MethodReport) -> str:
    if method.reached == len(method.metrics):
        return number(method.target_step)
    return f"{number(method.target_step)} ({method.reached} of {len(method.metrics)})"


def error_title(error: dict[str, Any], count: int) -> str:
    """The heading of an error in :meth:`Report.distinct_errors`."""
    others = f" and {count - 1} more" if count > 1 else ""
    return f"{error['problem']}, {error['method']}, seed {error['seed']}{others}: {error['status']}"


def verdict(problem: ProblemReport) -> str:
    """What the figures say, and what they do not."""
    best, *others = problem.methods
    if best.median is None:
        return "No method has a median: most runs diverged or failed."
    if not others:
        return f"{best.method}: median test {problem.metric} {number(best.median)}."
    equal = [method.method for method in others if method.median == best.median]
    close = [method.method for method in others if method.as_good_as_best and method.method not in equal]
    lead = f"{_listing([best.method, *equal])} {'share' if equal else 'has'} the best median test {problem.metric}"
    lead = f"{lead}, {number(best.median)}"
    if problem.coverage < SEPARABLE:
        return f"{lead}; with so few seeds that may be chance."
    if close:
        rest = f"{_listing(close)} apart from {'them' if equal else 'it'}"
        return f"{lead}. The seeds do not tell {rest}: the intervals overlap."
    return lead + (", and the interval is apart from all others." if len(equal) < len(others) else ".")


def _listing(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


COST_COLUMNS = [
    Column(
        "step\nms",
        "median time of a training step: forward, backward and optimizer",
        lambda m: number(m.timing["step_ms"], 3),
        lambda m: m.timing["step_ms"],
    ),
    Column(
        "optimizer\nms",
        "the optimizer's part of a step",
        lambda m: number(m.timing["optimizer_ms"], 3),
        lambda m: m.timing["optimizer_ms"],
    ),
    Column(
        "compile\ns",
        "construction, and what the first steps took beyond ordinary ones: compiling and warming up, paid once",
        lambda m: "–" if m.timing["compile_seconds"] is None else f"{m.timing['compile_seconds']:.2f}",
    ),
    Column(
        "state\nB/param",
        "bytes of optimizer state per parameter",
        lambda m: number(m.state_bytes_per_parameter, 3),
        lambda m: m.state_bytes_per_parameter,
    ),
    Column(
        "diverged\n(tuning)",
        "diverged runs of all: at the reported setting, and while tuning",
        lambda m: f"{m.diverged}/{len(m.metrics)} ({m.trials_diverged}/{len(m.trials)})",
    ),
]
