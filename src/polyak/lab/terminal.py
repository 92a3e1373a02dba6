"""What the terminal shows: progress while a comparison runs, its tables at the end.

Nothing is lost at 80 columns: a table is split into blocks, and what is still too wide is folded. Names come from
users, so every text is printed as it is and never read as markup.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from polyak.lab import table
from polyak.lab.method_report import MethodReport
from polyak.lab.report import ProblemReport, Report
from polyak.lab.spec import Record, RunSpec

WIDTH_WITHOUT_TERMINAL = 140
BARS = 16  # runs under way that get a bar of their own
CALL_STYLES = {"better": "bold green", "worse": "red"}


class Planned(Protocol):
    """Whoever knows how many runs a comparison has; the number may change while it runs."""

    @property
    def total(self) -> int:
        """How many runs there are, those that have ended among them."""


def console(stderr: bool = False) -> Console:
    """A console whose width does not depend on the environment when it writes to a file."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=WIDTH_WITHOUT_TERMINAL)


class LiveProgress:
    """A bar for all runs and one for each run under way; without a terminal, a line for each run made.

    Args:
        plan: what knows how many runs there are.
        out: where to show it, by default the terminal's error output.
    """

    def __init__(self, plan: Planned, out: Console | None = None) -> None:
        self._console = out or console(stderr=True)
        self._plan = plan
        self._found = self._made = 0
        self._begin = time.monotonic()
        self._began: dict[str, float] = {}
        self._share: dict[str, float] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._all = self._bars.add_task("all runs", total=plan.total, note=f"0/{plan.total}")

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()
        if self._found:
            self._console.print(f"{self._found} runs were in the store already, {self._made} were made now")

    def began(self, spec: RunSpec) -> None:
        """Show a run that has begun."""
        self._began[spec.key], self._share[spec.key] = time.monotonic(), 0.0
        if len(self._tasks) < BARS:
            title = f"{spec.problem} {spec.method} {_phase(spec.split, spec.seed)}"
            self._tasks[spec.key] = self._bars.add_task(title, total=spec.steps, note="")

    def progress(self, spec: RunSpec, step: int, steps: int | None) -> None:
        """Show how far a run is; of so many steps, where that is known."""
        self._share[spec.key] = step / steps if steps else 0.0
        if spec.key in self._tasks:
            seconds = time.monotonic() - self._began[spec.key]
            note = f"step {step}{f'/{steps}' if steps else ''}, {clock(seconds)}"
            self._bars.update(self._tasks[spec.key], completed=step, total=steps, note=note)
        self._bars.update(self._all, note=self._time_left())

    def ended(self, record: Record, here: bool) -> None:
        """Move the bars on."""
        self._found, self._made = self._found + (not here), self._made + here
        self._share.pop(record.key, None)
        begin = self._began.pop(record.key, None)
        if (task := self._tasks.pop(record.key, None)) is not None:
            self._bars.remove_task(task)
        done = self._found + self._made
        self._bars.update(self._all, completed=done, total=self._plan.total, note=self._time_left())
        if here and self._bars.disable:
            self._say(record, None if begin is None else time.monotonic() - begin)

    def _time_left(self) -> str:
        """Counts the runs under way by the share of their steps that is done."""
        done, total, seconds = self._found + self._made, self._plan.total, time.monotonic() - self._begin
        worked = self._made + sum(self._share.values())
        if not worked:
            return f"{done}/{total}"
        left = max(0.0, total - self._found - worked) * seconds / worked
        return f"{done}/{total}, {clock(seconds)}, about {clock(left)} to go"

    def _say(self, record: Record, seconds: float | None) -> None:
        outcome = record.detail.get("reason", record.status) if record.metric is None else table.number(record.metric)
        took = "" if seconds is None else f", {seconds:.1f} s"
        text = (
            f"[{self._time_left()}] {record.problem} {record.method} {_phase(record.split, record.seed)} "
            f"({table.setting(record.setting)}{took}): {outcome}"
        )
        self._console.print(Text(text), soft_wrap=True)


def _phase(split: str, seed: int) -> str:
    return f"tuning seed {seed}" if split == "validation" else f"test seed {seed}"


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def print_report(report: Report, out: Console) -> None:
    """Print for each problem the verdict, the tables, the chosen settings and what was lost."""
    for problem in report.problems:
        described = problem.described
        out.print(
            Text(f"{described.problem}{f': {described.steps} steps a run' if described.steps else ''}", style="dim")
        )
        out.print(Text(problem.sentence, style="bold"))
        out.print()
        out.print(_table(problem, table.results(problem)))
        out.print()
        out.print(_table(problem, table.costs(problem)))
        if described.timed is not None:
            out.print(Text(f"times of a step: {table.timed(problem)}", style="dim"))
        out.print()
        if described.target is not None:
            out.print(Text(f"target: validation {described.metric} {table.number(described.target)}", style="dim"))
        out.print(_rows((name, setting, f"validation {seen}") for name, setting, seen in table.chosen(problem)))
        _print_notes(problem, out)
        out.print()


def _print_notes(problem: ProblemReport, out: Console) -> None:
    for warning in problem.warnings:
        out.print(Text(f"! {warning}", style="yellow"))
    lost = [
        (method, reason, f"{count} {'run' if count == 1 else 'runs'}")
        for method, reason, count in table.failures(problem)
    ]
    if lost:
        out.print(Text("runs that came to nothing", style="dim"))
        out.print(_rows(lost))


def print_errors(report: Report, out: Console) -> None:
    """Print what ended the failed and crashed runs."""
    for error, count in report.distinct_errors():
        out.print(Text(table.error_title(error, count), style="bold red"))
        out.print(Text(error["error"].rstrip()), soft_wrap=True)


def _table(problem: ProblemReport, columns: list[table.Column]) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    made.add_column("method", overflow="fold")
    for column in columns:
        made.add_column(Text(column.heading), justify="right", overflow="fold")
    best = [column.best(problem.methods) for column in columns]
    for method in problem.methods:
        cells = [Text(c.text(method), style=_style(c, method, b)) for c, b in zip(columns, best, strict=True)]
        made.add_row(Text(method.method), *cells)
    return made


def _style(column: table.Column, method: MethodReport, best: set[str]) -> str:
    if column.text is table.call and method.judgement is not None:
        return CALL_STYLES.get(method.judgement.call, "")
    return "bold green" if method.method in best else ""


def _rows(rows: Iterable[tuple[str, ...]]) -> Table:
    """Rows without headings."""
    made = Table.grid(padding=(0, 2))
    rows = list(rows)
    for _ in rows[0] if rows else ():
        made.add_column(overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    return made
