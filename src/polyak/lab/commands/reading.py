"""``polyak report`` and ``polyak runs``: what a store knows."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from polyak.lab.live import LivePage, port_of
from polyak.lab.report import summarize
from polyak.lab.results import check_report_path, write_report
from polyak.lab.store import Store, Stored
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
    live: Annotated[
        bool, typer.Option("--live", help="Serve the page on 127.0.0.1 until Ctrl-C instead, while runs are added.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(help="Where --live serves; one that is in use is left for a free one.")
    ] = None,
) -> None:
    """Report on a comparison, ended or not, by what the store knows, without the problem's file; nothing is run."""
    page = port_of(live if port is None else port)
    if form is ReportForm.html and page is None:
        check_report_path(report, store)
    with _reading(store) as opened:
        stored = _numbered(opened, number)
    if page is not None:
        _serve(store, page, stored.identity)
        return
    known = restore(stored)
    if known.unfinished:
        typer.echo(f"{known.unfinished}; run: {known.command}", err=True)
    if form is ReportForm.csv:
        export.write_csv(known.records.values(), sys.stdout)
        return
    found = summarize(known.described, known.records)
    if form is ReportForm.json:
        typer.echo(json.dumps(found.to_json(), indent=2))
        return
    write_report(found, report, [known.unfinished] if known.unfinished else [])
    typer.echo(f"report: {report}")


def _numbered(opened: Store, number: int) -> Stored:
    """The comparison that a number means: 1 is the first of a store, -1 the last."""
    stored = opened.campaigns()
    if not stored:
        raise BadInput(f"the store {str(opened.path)!r} tells of no comparison; `polyak runs` lists what is in it")
    if not 1 <= abs(number) <= len(stored):
        raise BadInput(f"--comparison must be from 1 to {len(stored)}, or -1 for the last, got {number}")
    return stored[number - 1 if number > 0 else number]


def _serve(store: Path, port: int, identity: str) -> None:
    """Serve the page until Ctrl-C."""
    with suppress(KeyboardInterrupt), LivePage(store, port, lambda opened: opened.campaigns(identity)[0]):
        threading.Event().wait()


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
