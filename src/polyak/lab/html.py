"""The page: one file that needs nothing else, no network, no library and, to be read, no script."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import polyak
from polyak.lab import figures, palette, table
from polyak.lab.errors import require
from polyak.lab.loops import BLOW_UP, RUNNING
from polyak.lab.method_report import MethodReport
from polyak.lab.problem import WARMUP
from polyak.lab.report import ProblemReport, Report
from polyak.lab.statistics import profile_score
from polyak.lab.svg import Figure, asset

GENERATOR = '<meta name="generator" content="polyak '
HEAD = 4096  # bytes of a file within which a page says that it is one

Cell = dict[str, str]


def render(report: Report, refresh: float | None = None, progress: Sequence[str] = ()) -> str:
    """The report as one HTML page.

    Args:
        report: what to show.
        refresh: for a page that a server renders anew: after how many seconds it asks for itself again.
        progress: what is missing and how far it is, where the comparison has not ended.
    """
    described = [problem.described for problem in report.problems]
    words = {
        "version": polyak.__version__,
        "names": ", ".join(each.problem for each in described),
        "count": f"{len(report.methods)} methods" if len(report.methods) > 1 else report.methods[0],
        "date": next((each.date for each in described if each.date), ""),
        "colours": palette.css(),
        "css": asset("chart.css") + asset("report.css"),
        "script": asset("page.js"),
        "data": _data(report),
        "refresh": refresh,
        "progress": progress,
    }
    content = {
        "problems": [_section(problem, report) for problem in report.problems],
        "overview": _overview(report),
        "errors": [_error(error, count) for error, count in report.distinct_errors()],
        "origin": list(_origin(report)),
        "rules": list(_rules(report)),
    }
    return str(_template().render(**words, **content))


def notice(words: str, refresh: float) -> str:
    """A page of a few words, in place of a report that cannot be made now; it asks for itself again."""
    return (
        f'<!doctype html><meta http-equiv="refresh" content="{refresh:g}"><title>polyak</title><p>{escape(words)}</p>'
    )


def is_report(path: Path) -> bool:
    """Whether a file is a page that polyak made, so that it may be replaced."""
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(HEAD)


@lru_cache
def _template() -> Any:
    jinja2 = require("jinja2")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(asset("report.html"))


def _data(report: Report) -> str:
    # "<" is written as an escape, so that no text in the data can end the script element
    return json.dumps(report.data(), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _section(problem: ProblemReport, report: Report) -> dict[str, Any]:
    described = problem.described
    target = (
        "" if described.target is None else f" Target: validation {described.metric} {table.number(described.target)}."
    )
    steps = f" {described.steps} steps a run." if described.steps else ""
    lead, _, others = problem.sentence.partition("; ")
    if not lead.startswith("use "):  # nothing is recommended, so all of it is needed
        lead, others = problem.sentence, ""
    return {
        "name": described.problem,
        "metric": described.metric,
        "lead": f"{lead};" if others else lead,
        "others": others,
        "description": f"{described.description}{steps}{target}",
        "warnings": problem.warnings,
        "results": _columns(table.results(problem), problem, report),
        "slowest": table.slowest(problem),
        "costs": _columns(table.costs(problem), problem, report),
        "settings": _rows(["setting", "validation of that setting"], ["left", ""], table.chosen(problem), report),
        "lost": _rows(["reason", "runs"], ["left", ""], table.failures(problem), report),
        "charts": [*_charts(problem)],
        "expected": figures.expected(problem),
        "clouds": figures.tuning(problem),
    }


def _charts(problem: ProblemReport) -> Iterable[Figure]:
    yield figures.forest(problem)
    yield figures.costs(problem)
    yield figures.curves(problem, "validation")
    yield figures.curves(problem, "train")


def _columns(columns: list[table.Column], problem: ProblemReport, report: Report) -> dict[str, Any]:
    best = [column.best(problem.methods) for column in columns]
    rows = [
        {
            **_name(method.method, report),
            "cells": [_cell(c, method, winners) for c, winners in zip(columns, best, strict=True)],
        }
        for method in problem.methods
    ]
    return {"headings": [{"text": c.heading, "meaning": c.meaning} for c in columns], "rows": rows}


def _cell(column: table.Column, method: MethodReport, best: set[str]) -> Cell:
    """The main figure, and what qualifies it in small print."""
    text = column.text(method)
    if column.text is table.call:
        return {"label": column.heading, "main": text, "looks": method.judgement.call if method.judgement else ""}
    main, _, rest = text.partition(" ")
    return {"label": column.heading, "main": main, "rest": rest, "looks": "best" if method.method in best else ""}


def _rows(headings: list[str], looks: list[str], rows: Sequence[Sequence[Any]], report: Report) -> Any:
    """A table of texts, of which the first names the method; ``None`` where there is no row."""
    if not rows:
        return None
    made = [
        {
            **_name(method, report),
            "cells": [
                {"label": heading, "main": str(text), "looks": look}
                for heading, look, text in zip(headings, looks, texts, strict=True)
            ],
        }
        for method, *texts in rows
    ]
    return {"headings": [{"text": h, "left": look} for h, look in zip(headings, looks, strict=True)], "rows": made}


def _name(method: str, report: Report) -> dict[str, Any]:
    markup: Callable[[str], Any] = require("markupsafe").Markup
    return {"method": method, "swatch": markup(figures.swatch(report.methods.index(method)))}


def _overview(report: Report) -> dict[str, Any] | None:
    """What a comparison of several problems adds to each of them."""
    if len(report.problems) == 1:
        return None
    headings = [f"{p.described.problem}: {p.described.metric}" for p in report.problems]
    rows = []
    for method in report.methods:
        found = [next((m for m in p.methods if m.method == method), None) for p in report.problems]
        rows.append([method, *("–" if m is None else table.number(m.median) for m in found)])
    if report.profiles:
        headings.append("profile score")
        for row in rows:
            row.append(table.number(profile_score(report.profiles[row[0]]), 3) if row[0] in report.profiles else "–")
    made = _rows(headings, [""] * len(headings), rows, report)
    return {"table": made, "profile": figures.profile(report) if report.profiles else None}


def _error(error: dict[str, Any], count: int) -> dict[str, str]:
    text, setting = error["error"], table.setting(error["hyperparameters"])
    return {"title": table.error_title(error, count), "setting": setting, "text": text}


def _origin(report: Report) -> Iterable[tuple[str, str]]:
    """Where the figures come from, each said once however many problems share it."""
    described = [problem.described for problem in report.problems]
    for name in ("command", "date", "commit"):
        if found := [value for each in described if (value := getattr(each, name))]:
            yield name, "; ".join(dict.fromkeys(found))
    if report.machines:
        yield "machines", "; ".join(report.machines)
    for versions in report.versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def _rules(report: Report) -> Iterable[str]:
    described = report.problems[0].described
    yield (
        "Every method had the same budget. Settings were chosen on validation data; the test split is read once, at "
        "the end of each run at the chosen setting, and those runs use seeds that tuning did not see."
    )
    yield (
        "Where the search space holds a method's published defaults, they are its first trial; the others are a "
        "scrambled Sobol sequence over the space. All trials share one seed; the best few are run again on others, and "
        "the best mean is chosen."
    )
    yield (
        "Runs with the same seed start from the same weights and see the same batches; a difference to the reference "
        f"is that of such pairs. All intervals of a problem hold together at {described.percent}."
    )
    if described.looking:
        yield described.looking
    yield (
        "Better or worse: the interval leaves out 0. Equivalent: it lies within the margin. Unsettled: neither. "
        "A call says nothing about other problems, models or budgets."
    )
    yield (
        f"Unless a problem says otherwise, learning rates warm up over {WARMUP:.0%} of the steps and follow a cosine "
        "to zero, for all methods alike."
    )
    yield (
        f"A run has diverged when weights or its final metric are not finite, or when the median of {RUNNING} training "
        f"losses is above {BLOW_UP:g} times the first. It counts as infinitely bad; a run that an error ended says "
        "nothing about its method."
    )
    yield "Soonest at the target is who meets it on the most seeds, and among these who takes the fewest steps."
    yield (
        "Times are medians of wall-clock times while the other workers ran. Waiting for data is part of them; "
        "compiling and evaluation are not."
    )
