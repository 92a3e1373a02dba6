"""The commands of the command line."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.table import Table

from polyak import aot, optim
from polyak.declare import Choice, Hyper, Range
from polyak.lab import terminal
from polyak.lab.comparison import compare as run_comparison
from polyak.lab.comparison import plan
from polyak.lab.errors import BadInput
from polyak.lab.problems import BUILTIN
from polyak.lab.results import check_report_path, write_report
from polyak.lab.store import Store
from polyak.lab.table import number, setting
from polyak.optim.ahead import sources
from polyak.optim.create import arguments
from polyak.optim.engine.keeping import STORAGES, Keeping

METHODS = "sgd,adamw,adan,lion,muon,cadamw"

app = typer.Typer(
    name="polyak",
    help="Momentum methods for PyTorch: look them up, and find out which one trains your problem best.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def compare(
    problems: Annotated[
        list[str],
        typer.Argument(help=f"{', '.join(BUILTIN)}, or your own as path/to/file.py:function."),
    ],
    methods: Annotated[str, typer.Option(help="The methods, separated by commas; see `polyak list`.")] = METHODS,
    trials: Annotated[int, typer.Option(help="Tuning runs of each method.")] = 10,
    seeds: Annotated[int, typer.Option(help="Runs of each method at its best setting.")] = 5,
    steps: Annotated[int | None, typer.Option(help="Steps of a run, instead of the problem's own number.")] = None,
    workers: Annotated[int | None, typer.Option(help="Runs made at a time; by default one for each core.")] = None,
    store: Annotated[Path, typer.Option(help="The file that keeps the runs.")] = Path("polyak-runs.db"),
    report: Annotated[Path, typer.Option(help="The HTML report.")] = Path("polyak-report.html"),
) -> None:
    """Tune each method with the same budget, then judge it on data that tuning never read.

    Stop it at any moment: the same command goes on where it was.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 1:
        raise BadInput(f"workers must be at least 1, got {workers}")
    check_report_path(report)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    campaign = plan(problems, names, trials, seeds, steps)
    with terminal.LiveProgress(campaign) as progress:
        try:
            found = run_comparison(campaign, store, workers, progress)
        except KeyboardInterrupt:
            typer.echo(f"stopped; the ended runs are in {store}, and the same command goes on from there", err=True)
            raise typer.Exit(130) from None
    terminal.print_report(found, terminal.console())
    write_report(found, report)
    typer.echo(f"report: {report}    runs: {store}")
    if found.errors:
        terminal.print_errors(found, terminal.console(stderr=True))
        raise typer.Exit(1)


@app.command(name="compile")
def compile_ahead(
    methods: Annotated[list[str] | None, typer.Argument(help="Methods; by default all of them.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16, float16 or float64.")] = "float32",
    state_storage: Annotated[str, typer.Option(help="float32, bfloat16 or int8.")] = "float32",
) -> None:
    """Compile the kernels of methods now, into the cache (POLYAK_CACHE), so that no training waits for it."""
    weight = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
    if dtype not in weight:
        raise BadInput(f"dtype must be one of {list(weight)}, got {dtype!r}")
    if state_storage not in STORAGES:
        raise BadInput(f"state_storage must be one of {list(STORAGES)}, got {state_storage!r}")
    try:
        classes = [optim.get(name) for name in methods or optim.names()]
    except ValueError as error:
        raise BadInput(str(error)) from None
    keeping = Keeping(state_storage)
    found = [s for method in classes for s in sources(method, weight[dtype], keeping=keeping)]
    results = aot.prepare(found)
    for name, result in results.items():
        typer.echo(f"{name}: {result}")
    if any(result not in ("compiled", "there already") for result in results.values()):
        raise typer.Exit(1)


@app.command()
def runs(
    store: Annotated[Path, typer.Argument(help="The file that keeps the runs.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List every run of a store."""
    if not store.is_file():
        raise BadInput(f"there is no store {str(store)!r}")
    opened = Store(store, read_only=True)
    try:
        records = opened.runs()
    finally:
        opened.close()
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
        cells = (record.key[:8], record.problem, record.method, setting(record.setting), str(record.seed))
        made.add_row(*cells, record.split, record.status, number(record.metric))
    terminal.console().print(made)


@app.command(name="list")
def list_methods() -> None:
    """List the methods."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("method", "paper", "year", "state, B/param"):
        made.add_column(heading, justify="right" if heading in ("year", "state, B/param") else "left")
    for name in optim.names():
        method = optim.get(name)
        made.add_row(name, method.paper.title, str(method.paper.year), f"{method.state_bytes_per_parameter():g}")
    terminal.console().print(made)


@app.command()
def show(name: Annotated[str, typer.Argument(help="A method, see `polyak list`.")]) -> None:
    """Show a method: equation, paper, arguments, state and how it is verified."""
    try:
        method = optim.get(name)
    except ValueError as error:
        raise BadInput(str(error)) from error
    out = terminal.console()
    paper = method.paper
    out.print(f"[bold]{name}[/]  {paper.title} ({paper.year}), {paper.link}\n", soft_wrap=True)
    out.print(textwrap.indent(method.equation, "    "), markup=False, soft_wrap=True)
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("argument", "default", "allowed", "tuned over", "meaning"):
        made.add_column(heading)
    for argument, hyper in arguments(method).items():
        searched = _dimension(method.search_space.get(argument))
        made.add_row(argument, str(hyper.default), _allowed(hyper), searched, hyper.doc)
    out.print(made)
    out.print(f"state: {method.state_bytes_per_parameter():g} bytes per float32 parameter")
    for slot, condition in method.memories():
        out.print(f"    {slot.name}: {slot.holds}{condition and f' ({condition})'}", markup=False, soft_wrap=True)
    out.print(f"verified by: {', '.join(method.vectors) or 'no vectors'}", markup=False)


def _allowed(hyper: Hyper) -> str:
    allowed = " | ".join(map(repr, hyper.allowed)) if isinstance(hyper.allowed, tuple) else str(hyper.allowed)
    return f"{allowed} | None" if hyper.optional else allowed


def _dimension(dimension: Range | Choice | None) -> str:
    if dimension is None:
        return ""
    if isinstance(dimension, Choice):
        return " | ".join(map(str, dimension.values))
    return f"{dimension.low:g} .. {dimension.high:g}{', log' if dimension.log else ''}"
