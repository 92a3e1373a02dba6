"""The HTML report: one file that needs nothing else, no network and no library."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import Any

from polyak.lab import table
from polyak.lab.loops import BLOW_UP, RUNNING
from polyak.lab.problem import WARMUP
from polyak.lab.report import ProblemReport, Report

COLOURS = 8  # as in the style sheet
CURVE_DIGITS = 6
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
MARK = """<svg viewBox="0 0 46 46" aria-hidden="true"><g fill="currentColor">
<circle cx="7" cy="11" r="3" opacity=".18"/>
<circle cx="12" cy="20" r="4.2" opacity=".34"/><circle cx="19.5" cy="27" r="5.4" opacity=".55"/>
<circle cx="31.5" cy="30" r="8.5"/></g>
<path d="M2 14c6 18 17 27 42 27" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round"/></svg>"""


def render(report: Report) -> str:
    """The report as one HTML page."""
    names = ", ".join(problem.problem for problem in report.problems)
    body = "\n".join(
        [
            _header(names, report),
            _overview(report),
            *(_section(i, problem, report) for i, problem in enumerate(report.problems)),
            _errors(report),
            _method(report),
        ]
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="polyak">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>polyak compare: {escape(names)}</title>
<style>{_asset("report.css")}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="report">{_data(report)}</script>
<script>{_asset("report.js")}</script>
<script>{_asset("page.js")}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return files("polyak.lab").joinpath("assets", name).read_text(encoding="utf-8")


def _data(report: Report) -> str:
    # "<" is written as an escape, so that no text in the data can end the script element
    return json.dumps(_rounded(report.to_json()), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _rounded(value: Any) -> Any:
    """Curves need no sixteen digits."""
    if isinstance(value, float):
        return float(f"{value:.{CURVE_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _header(names: str, report: Report) -> str:
    methods = f"{len(report.methods)} methods" if len(report.methods) > 1 else report.methods[0]
    budget = f"{_count(report.trials, 'tuning trial')} and {_count(report.seeds, 'seed')}"
    return f"""<header>{MARK}<div><h1>{escape(names)}: {methods} compared</h1>
<p class="soft">Every method had the same budget, {budget}, and was judged on test data that tuning never read.</p>
</div><button id="theme" type="button" title="light or dark">◐</button></header>"""


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _section(index: int, problem: ProblemReport, report: Report) -> str:
    metric = escape(problem.metric)
    steps = "" if problem.steps is None else f" {problem.steps} steps a run."
    target = "" if problem.target is None else f" Target: validation {metric} {table.number(problem.target)}."
    charts = [
        _figure("train", "Training loss", "Median over the seeds, and their range."),
        _figure("validation", f"Validation {problem.metric}", "Median over the seeds, and their range."),
        _figure("finals", f"Test {problem.metric} of each seed", "Stroke: median. Bar: interval for the median."),
        _figure("tuning", "Tuning", f"Validation {problem.metric} of each trial. Square: defaults. Cross: diverged."),
    ]
    return f"""<section data-problem="{index}">
<h2>{escape(problem.problem)}</h2>
<p class="soft">{escape(problem.description)}{steps}{target}</p>
<p class="verdict">{escape(table.verdict(problem))}</p>
<div class="scroll">{_results(problem, report)}</div>
<div class="legend" role="group" aria-label="methods shown"></div>
<div class="charts">{"".join(charts)}</div>
<details open><summary>Settings that tuning chose</summary>
<div class="scroll">{_settings(problem, report)}</div></details>
</section>"""


def _figure(name: str, title: str, text: str) -> str:
    caption = f"<figcaption><h3>{escape(title)}</h3></figcaption><p>{escape(text)}</p>"
    return f'<figure data-chart="{name}">{caption}</figure>'


def _results(problem: ProblemReport, report: Report) -> str:
    columns = table.columns(problem)
    best = [column.best(problem.methods) for column in columns]
    head = "".join(
        f'<th title="{escape(c.meaning)}">{escape(c.heading).replace(chr(10), "<br>")}</th>' for c in columns
    )
    rows = []
    for place, method in enumerate(problem.methods):
        cells = "".join(
            f"<td{' class=best' if method.method in winners else ''}><span>{_cell(column.text(method))}</span></td>"
            for column, winners in zip(columns, best, strict=True)
        )
        tied = place > 0 and method.as_good_as_best and problem.coverage >= table.SEPARABLE
        tag = '<span class="tag" title="its interval overlaps that of the best">≈ best</span>' if tied else ""
        rows.append(f"<tr>{_name(method.method, report, tag)}{cells}</tr>")
    return f"<table><thead><tr><th>method</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(text: str) -> str:
    """The main figure, and what qualifies it in small print."""
    main, _, rest = text.partition(" ")
    return f"{escape(main)} <small>{escape(rest)}</small>" if rest else escape(main)


def _name(method: str, report: Report, tag: str = "") -> str:
    """The first cell of a row, in the method's colour."""
    number = report.methods.index(method) % COLOURS
    swatch = f'<span class="swatch" style="background:var(--c{number})"></span>'
    return f'<td class="method">{swatch}{escape(method)}{tag}</td>'


def _settings(problem: ProblemReport, report: Report) -> str:
    metric = escape(problem.metric)
    head = f'<th class="left">setting</th><th>validation {metric}, tuned</th><th>with defaults</th>'
    rows = "".join(
        f'<tr>{_name(m.method, report)}<td class="left"><code>{escape(table.setting(m.setting))}</code></td>'
        f"<td>{table.number(m.tuned)}</td><td>{table.number(m.untuned)}</td></tr>"
        for m in problem.methods
    )
    return f"<table><thead><tr><th>method</th>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _overview(report: Report) -> str:
    """What a comparison of several problems adds to each of them."""
    if len(report.problems) == 1:
        return ""
    text = "The share of problems on which a method met the target within a multiple of the fastest method's steps."
    profile = _figure("profile", "Performance profile", text) if report.profiles else ""
    return f"""<section><h2>All problems</h2>
<p class="soft">Median test metric of each method on each problem.</p>
<div class="charts wide"><div class="scroll">{_medians(report)}</div>{profile}</div></section>"""


def _medians(report: Report) -> str:
    best = {problem.problem: table.columns(problem)[0].best(problem.methods) for problem in report.problems}
    cells: dict[str, str] = dict.fromkeys(report.methods, "")
    for problem in report.problems:
        for method in problem.methods:
            mark = " class=best" if method.method in best[problem.problem] else ""
            text = table.number(method.median) if method.median is not None else "diverged"
            cells[method.method] += f"<td{mark}><span>{text}</span></td>"
    head = "".join(f"<th>{escape(p.problem)}<br>{escape(p.metric)}</th>" for p in report.problems)
    rows = "".join(f"<tr>{_name(method, report)}{row}</tr>" for method, row in cells.items())
    return f"<table><thead><tr><th>method</th>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _errors(report: Report) -> str:
    items = "".join(
        f"<h3>{escape(table.error_title(error, count))}</h3>"
        f"<p class='soft small'><code>{escape(table.setting(error['hyperparameters']))}</code></p>"
        f"<pre>{escape(error['error'])}</pre>"
        for error, count in report.distinct_errors()
    )
    return f"<section><h2>Runs that failed</h2>{items}</section>" if items else ""


def _method(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items() if name != "code")
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, one thread a run"
    return f"""<section><h2>How this was measured</h2>{_list(_rules(report))}
<p class="soft small" style="margin-top:14px">{escape(versions)} on {escape(machine)}.</p></section>"""


def _rules(report: Report) -> Iterable[str]:
    yield (
        "Trial 0 of every method is its published defaults; the others are a scrambled Sobol sequence over the search "
        "space declared beside the method. All trials share one seed. The best is chosen by validation metric; of "
        "equals, the one that met the target sooner, then the one with the lower training loss."
    )
    yield "The reported seeds were not used in tuning. The test split is read once, at the end of each reported run."
    yield (
        f"Unless a problem says otherwise, learning rates warm up over {WARMUP:.0%} of the steps and follow a cosine "
        "to zero, for all methods alike."
    )
    coverage = min(problem.coverage for problem in report.problems)
    yield (
        "An interval is a pair of order statistics of the seeds' metrics; here it covers the median with a probability "
        f"of at least {coverage:.1%}. It says nothing about other problems, models or budgets."
    )
    yield (
        f"A run has diverged when weights or its final metric are not finite, or when the median of {RUNNING} training "
        f"losses is above {BLOW_UP:g} times the first. It counts as infinitely bad."
    )
    yield (
        "Times are wall-clock medians while the other workers ran. Waiting for data is part of them; compiling and "
        "evaluation are not."
    )


def _list(items: Iterable[str]) -> str:
    return f"<ul class='small'>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
