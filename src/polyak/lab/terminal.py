"""What the terminal shows: progress while a comparison runs, tables at its end."""

from __future__ import annotations

import time
from types import TracebackType

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from polyak.lab import table
from polyak.lab.campaign import Campaign
from polyak.lab.report import ProblemReport, Report
from polyak.lab.spec import Record, RunSpec

WIDTH_WITHOUT_TERMINAL = 140


def console(stderr: bool = False) -> Console:
    """A console that does not fold its tables when it writes to a file."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=WIDTH_WITHOUT_TERMINAL)


class LiveProgress:
    """A bar for each problem and method while runs are made; without a terminal, a line for each run made."""

    def __init__(self, campaign: Campaign) -> None:
        self._console = console(stderr=True)
        self._campaign = campaign
        self._found = self._made = 0
        self._begin = time.monotonic()
        self._best: dict[tuple[str, str], float] = {}
        self._problems = {loaded.problem.name: loaded.problem for loaded in campaign.problems}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._tasks = self._add_bars()
        self._all = self._bars.add_task("all runs", total=campaign.total, note="")

    def _add_bars(self) -> dict[tuple[str, str], TaskID]:
        campaign, tasks = self._campaign, {}
        for loaded in campaign.problems:
            name = loaded.problem.name
            for method in campaign.methods:
                title = f"{escape(name)} [bold]{method}[/]" if len(self._problems) > 1 else f"[bold]{method}[/]"
                tasks[name, method] = self._bars.add_task(title, total=campaign.runs_at(loaded, method), note="")
        return tasks

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()
        if self._found:
            self._console.print(f"{self._found} runs were in the store already, {self._made} were made now")

    def began(self, spec: RunSpec) -> None:
        """Show what is being tried."""
        phase = "tuning" if spec.split == "validation" else f"seed {spec.seed} at the best setting"
        self._bars.update(self._tasks[spec.problem, spec.method], note=self._note(spec.problem, spec.method, phase))

    def progress(self, spec: RunSpec, step: int, steps: int | None) -> None:
        """Show how far a run is."""
        far = f"step {step}" if steps is None else f"step {step} of {steps}"
        self._bars.update(self._tasks[spec.problem, spec.method], note=self._note(spec.problem, spec.method, far))

    def ended(self, record: Record, here: bool) -> None:
        """Move the bars on."""
        self._found, self._made = self._found + (not here), self._made + here
        place = record.problem, record.method
        problem = self._problems[record.problem]
        if record.split == "validation" and record.metric is not None:
            best = self._best.get(place)
            self._best[place] = (
                record.metric if best is None or problem.better(record.metric, best) else self._best[place]
            )
        note = record.status if record.metric is None else f"{problem.metric} {table.number(record.metric)}"
        self._bars.update(self._tasks[place], advance=1, note=self._note(*place, note))
        self._bars.update(self._all, advance=1, note=self._time_left())
        if here and self._bars.disable:
            self._say(record, note)

    def _time_left(self) -> str:
        if not self._made:
            return ""
        seconds = time.monotonic() - self._begin
        left = (self._campaign.total - self._found - self._made) * seconds / self._made
        return f"{_clock(seconds)}, about {_clock(left)} to go"

    def _note(self, problem: str, method: str, now: str) -> str:
        best = self._best.get((problem, method))
        return now if best is None else f"{now}, best {table.number(best)}"

    def _say(self, record: Record, note: str) -> None:
        seconds = time.monotonic() - self._begin
        done = self._found + self._made
        self._console.print(
            f"[{done}/{self._campaign.total}, {seconds:.0f} s] {record.problem} {record.method} "
            f"{record.split} seed {record.seed} ({table.setting(record.setting)}): {note}",
            markup=False,
        )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def print_report(report: Report, out: Console) -> None:
    """Print a table for each problem, with what it says and the settings that were found."""
    for problem in report.problems:
        made = _problem_table(problem, report, foldable=False)
        fits = out.measure(made, options=out.options.update(max_width=10 * out.width)).maximum <= out.width
        out.print(made if fits else _problem_table(problem, report, foldable=True))
        out.print(Text(table.verdict(problem), style="bold"))
        settings = Table.grid(padding=(0, 2))
        for method in problem.methods:
            gain = f"validation {table.number(method.tuned)} (defaults {table.number(method.untuned)})"
            settings.add_row(method.method, Text(table.setting(method.setting)), Text(gain, style="dim"))
        out.print(settings)
        out.print()


def print_errors(report: Report, out: Console) -> None:
    """Print what ended the failed and crashed runs."""
    for error, count in report.distinct_errors():
        out.print(Text(table.error_title(error, count), style="bold red"))
        out.print(error["error"].rstrip(), markup=False, soft_wrap=True)


def _problem_table(problem: ProblemReport, report: Report, foldable: bool) -> Table:
    steps = "" if problem.steps is None else f"{problem.steps} steps, "
    title = f"{problem.problem}: {steps}{report.trials} trials, {report.seeds} seeds"
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = table.columns(problem)
    made.add_column("method", no_wrap=True)
    for column in columns:
        made.add_column(column.heading, justify="right", no_wrap=not foldable)
    for method in problem.methods:
        cells = [
            Text(column.text(method), style="bold green" if method.method in column.best(problem.methods) else "")
            for column in columns
        ]
        made.add_row(method.method, *cells)
    if problem.target is not None:
        made.caption = f"target: validation {problem.metric} {table.number(problem.target)}"
    return made
