"""What the terminal shows: progress while a comparison runs, its tables at the end.

Nothing is lost at 80 columns: a table is split into blocks, and what is still too wide is folded. Names come from
users, so every text is printed as it is and never read as markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from polyak.lab import table
from polyak.lab.method_report import MethodReport
from polyak.lab.pace import Pace, Planned, phase
from polyak.lab.report import ProblemReport, Report
from polyak.lab.spec import Record, RunSpec

WIDTH_WITHOUT_TERMINAL = 140
BARS = 16  # runs under way that get a bar of their own
CALL_STYLES = {"better": "bold green", "worse": "red"}


def console(stderr: bool = False, width: int = WIDTH_WITHOUT_TERMINAL) -> Console:
    """A console that is ``width`` wide, whatever the environment says, where it writes to a file."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=width)


class LiveProgress:
    """A bar for all runs and one for each run under way; without a terminal, a line for each run made.

    Args:
        plan: what knows how many runs there are.
        out: where to show it, by default the terminal's error output.
    """

    def __init__(self, plan: Planned, out: Console | None = None) -> None:
        self._console = out or console(stderr=True)
        self._plan, self._pace = plan, Pace(plan)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),  # goes on where a run hangs
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
        if self._pace.found:
            self._console.print(f"{self._pace.found} runs were in the store already, {self._pace.made} were made now")

    def began(self, spec: RunSpec) -> None:
        """Show a run that has begun."""
        run = self._pace.began(spec)
        if len(self._tasks) < BARS:
            self._tasks[spec.key] = self._bars.add_task(run.title, total=spec.steps, note="")

    def progress(self, spec: RunSpec, step: int, steps: int | None) -> None:
        """Show how far a run is; of so many steps, where that is known."""
        self._pace.progress(spec, step, steps)
        if spec.key in self._tasks:
            note = self._pace.under_way[spec.key].place
            self._bars.update(self._tasks[spec.key], completed=step, total=steps, note=note)
        self._bars.update(self._all, note=self._pace.words())

    def ended(self, record: Record, here: bool) -> None:
        """Move the bars on."""
        run = self._pace.ended(record, here)
        if (task := self._tasks.pop(record.key, None)) is not None:
            self._bars.remove_task(task)
        self._bars.update(self._all, completed=self._pace.done, total=self._plan.total, note=self._pace.words())
        if here and self._bars.disable:
            self._say(record, None if run is None else run.seconds)

    def grew(self, plan: Planned, why: str) -> None:
        """Take it that there are more runs now, and say why."""
        self._plan = plan
        self._pace.grew(plan)
        self._console.print(Text(why), soft_wrap=True)
        self._bars.update(self._all, total=plan.total, note=self._pace.words())

    def _say(self, record: Record, seconds: float | None) -> None:
        outcome = record.detail.get("reason", record.status) if record.metric is None else table.number(record.metric)
        took = "" if seconds is None else f", {seconds:.1f} s"
        text = (
            f"[{self._pace.words()}] {record.problem} {record.method} {phase(record.split, record.seed)} "
            f"({table.setting(record.setting)}{took}): {outcome}"
        )
        self._console.print(Text(text), soft_wrap=True)


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
        if described.looking:
            out.print(Text(described.looking, style="dim"))
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
    if slow := table.slowest(problem):
        out.print(Text(slow, style="dim"))


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
