"""``polyak report`` and ``polyak runs``: what a store knows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from polyak.lab import export, terminal
from polyak.lab.commands.app import app
from polyak.lab.errors import BadInput
from polyak.lab.history import restore
from polyak.lab.report import summarize
from polyak.lab.results import check_report_path, write_report
from polyak.lab.store import Store
from polyak.lab.table import number, setting


class ReportForm(str, Enum):
    """What ``polyak report`` writes."""

    html = "html"
    json = "json"
    csv = "csv"


@app.command(name="report")
def report_again(
    store: Annotated[Path, typer.Argument(help="The file that keeps the runs.")],
    form: Annotated[
        ReportForm, typer.Option("--format", help="A page, or on standard output the verdict (json) or all runs (csv).")
    ] = ReportForm.html,
    report: Annotated[Path, typer.Option(help="The HTML report.")] = Path("polyak-report.html"),
    number: Annotated[
        int, typer.Option("--comparison", help="Which one, where a store has several: 1 is the first, -1 the last.")
    ] = -1,
) -> None:
    """Report on a comparison, ended or not, by what the store knows, without the problem's file; nothing is run."""
    if form is ReportForm.html:
        check_report_path(report, store)
    with _reading(store) as opened:
        stored = opened.campaigns()
    if not stored:
        raise BadInput(f"the store {str(store)!r} tells of no comparison; `polyak runs` lists what is in it")
    if not 1 <= abs(number) <= len(stored):
        raise BadInput(f"--comparison must be from 1 to {len(stored)}, or -1 for the last, got {number}")
    known = restore(stored[number - 1 if number > 0 else number])
    if known.missing:
        few = f"up to {known.missing} of {known.campaign.total} runs are missing"
        typer.echo(f"the comparison has not ended, {few}; run: {known.command}", err=True)
    elif known.may_grow:
        typer.echo(f"the comparison has not ended, more seeds may be needed; run: {known.command}", err=True)
    if form is ReportForm.csv:
        export.write_csv(known.records.values(), sys.stdout)
        return
    found = summarize(known.described, known.records)
    if form is ReportForm.json:
        typer.echo(json.dumps(found.to_json(), indent=2))
        return
    write_report(found, report)
    typer.echo(f"report: {report}")


@contextmanager
def _reading(store: Path) -> Iterator[Store]:
    """A store that is there, to be read; what could not be read of it is said at the end."""
    if not store.is_file():
        raise BadInput(f"there is no store {str(store)!r}")
    opened = Store(store, read_only=True)
    try:
        yield opened
    finally:
        opened.close()
    if opened.unreadable:
        lost = ", ".join(key[:8] for key in opened.unreadable)
        typer.echo(f"{len(opened.unreadable)} damaged in {store}, left out: {lost}", err=True)


@app.command()
def runs(
    store: Annotated[Path, typer.Argument(help="The file that keeps the runs.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List every run of a store."""
    with _reading(store) as opened:
        records = opened.runs()
    rows = [
        {
            "key": record.key,
            "problem": record.problem,
            "method": record.method,
            "hyperparameters": record.setting,
            "seed": record.seed,
            "split": record.split,
            "steps": record.steps,
            "status": record.status,
            "final_metric": record.metric,
            "versions": record.versions,
            "error": record.detail.get("error"),
        }
        for record in records
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("key", "problem", "method", "hyperparameters", "seed", "split", "status", "final metric"):
        made.add_column(heading)
    for record in records:
        words = (record.problem, record.method, setting(record.setting))  # as they are, whatever brackets they have
        cells = (record.key[:8], *map(escape, words), str(record.seed))
        made.add_row(*cells, record.split, record.status, number(record.metric))
    terminal.console().print(made)
