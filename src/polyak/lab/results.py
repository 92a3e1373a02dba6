"""What a comparison gives back to a program or a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from polyak.lab import export, figures, html, table
from polyak.lab.described import Described
from polyak.lab.errors import BadInput, require, suggestion
from polyak.lab.report import ProblemReport, Report, summarize
from polyak.lab.spec import Records
from polyak.lab.svg import Figure
from polyak.lab.writing import check_free, write_whole


class Results:
    """A finished comparison: its verdict, figures, charts and runs. A notebook shows the most of it.

    Args:
        described: its problems.
        records: its runs.

    Attributes:
        report: all of it as plain data.
    """

    def __init__(self, described: Sequence[Described], records: Records) -> None:
        if not described:
            raise BadInput("there is no comparison to show: no problem is described")
        self.report: Report = summarize(described, records)
        self._records = records

    def verdict(self) -> dict[str, Any]:
        """By problem the reference, and by method how it compares: what ``polyak report --format json`` prints."""
        return self.report.to_json()

    def table(self) -> Any:
        """A pandas DataFrame with a row for each problem and method."""
        return require("pandas").DataFrame([_row(p, m.method) for p in self.report.problems for m in p.methods])

    def runs(self) -> Any:
        """A pandas DataFrame with a row for each run."""
        return export.frame(self._records.values())

    def plot_forest(self, problem: str | None = None) -> Figure:
        """Paired differences to the reference.

        Args:
            problem: its name; may be left out where there is one alone.
        """
        return figures.forest(self._problem(problem))

    def plot_curves(self, problem: str | None = None, which: str = "validation") -> Figure:
        """The validation metric over the steps, or with ``which="train"`` the training loss."""
        if which not in ("validation", "train"):
            raise BadInput(f"which must be 'validation' or 'train', got {which!r}")
        return figures.curves(self._problem(problem), which)

    def plot_tuning(self, problem: str | None = None) -> list[Figure]:
        """For each method and each range that was searched, what every trial came to."""
        return figures.tuning(self._problem(problem))

    def plot_expected(self, problem: str | None = None) -> Figure:
        """What tuning with fewer trials could have been expected to find."""
        return figures.expected(self._problem(problem))

    def plot_costs(self, problem: str | None = None) -> Figure:
        """The time of a step, and the optimizer's part of it."""
        return figures.costs(self._problem(problem))

    def plot_profile(self) -> Figure:
        """Performance profiles over the problems."""
        if not self.report.profiles:
            raise BadInput("a performance profile needs at least two problems with a target that somebody met")
        return figures.profile(self.report)

    def save(self, path: str | Path) -> None:
        """Write the page; an existing file is replaced only if it is such a page."""
        write_report(self.report, Path(path))

    def export(self, path: str | Path) -> None:
        """Write all runs as ``.csv``, ``.json``, ``.parquet`` or ``.tensorboard``."""
        export.export(self._records.values(), Path(path))

    def _problem(self, name: str | None) -> ProblemReport:
        known = {problem.described.problem: problem for problem in self.report.problems}
        if name is None and len(known) == 1:
            return self.report.problems[0]
        if name not in known:
            raise BadInput(f"unknown problem {name!r}; {suggestion(str(name), known)}")
        return known[name]

    def __repr__(self) -> str:
        return "\n".join(f"{p.described.problem}: {p.sentence}" for p in self.report.problems)

    def _repr_html_(self) -> str:
        return "".join(_summary(problem) for problem in self.report.problems)


def check_report_path(path: Path, store: Path | None = None) -> None:
    """Refuse a report that could not be written, or that would replace something else, before hours are spent on it."""
    if store is not None and path.resolve() == store.resolve():
        raise BadInput(f"report and store are both {str(path)!r}; name two files")
    check_free(path, html.is_report, "report")


def write_report(report: Report, path: Path, progress: Sequence[str] = ()) -> None:
    """Write the page, whole or not at all; an existing file is replaced only if it is such a page.

    Args:
        report: what to show.
        path: where.
        progress: what is missing, where the comparison has not ended.
    """
    check_report_path(path)
    page = html.render(report, progress=progress)

    def write(temporary: Path) -> None:
        temporary.write_text(page, encoding="utf-8")

    write_whole(path, write, "report")


def _row(problem: ProblemReport, name: str) -> dict[str, Any]:
    method = next(m for m in problem.methods if m.method == name)
    judged = {key: value for key, value in problem.to_json()["methods"][name].items() if key != "failures"}
    return {
        "problem": problem.described.problem,
        "method": name,
        "median": method.median,
        "lowest": method.low,
        "highest": method.high,
        **judged,
        "reached": method.reached,
        "target_step": method.target_step,
        **method.timing,
        "state_bytes_per_parameter": method.state_bytes_per_parameter,
        "lost_runs": len(method.failures),
    }


def _summary(problem: ProblemReport) -> str:
    columns = table.results(problem)
    head = _cells("th", ["method", *(column.heading for column in columns)])
    rows = "".join(_cells("td", [m.method, *(c.text(m) for c in columns)]) for m in problem.methods)
    charts = (figures.forest(problem), figures.curves(problem))
    said = f"<p><b>{escape(problem.described.problem)}: {escape(problem.sentence)}</b></p>"
    return f"{said}<table>{head}{rows}</table>{''.join(chart._repr_html_() for chart in charts)}"


def _cells(tag: str, texts: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(text)}</{tag}>' for text in texts)}</tr>"
