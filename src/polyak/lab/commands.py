"""The commands of the command line."""

from __future__ import annotations

import json
import shlex
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.table import Table

from polyak import aot, optim
from polyak.declare import Choice, Hyper, Range
from polyak.lab import export, terminal
from polyak.lab.budget import estimate
from polyak.lab.comparison import METHODS, SEEDS, STORE, TRIALS, check_timeout, checked_workers, fit, plan, run
from polyak.lab.described import CONFIDENCE, check_levels
from polyak.lab.errors import BadInput
from polyak.lab.history import restore
from polyak.lab.problems import BUILTIN, FROM_FILES
from polyak.lab.report import summarize
from polyak.lab.results import check_report_path, write_report
from polyak.lab.store import Store
from polyak.lab.table import number, setting
from polyak.optim.ahead import sources
from polyak.optim.create import arguments
from polyak.optim.engine.keeping import STORAGES, Keeping


class ReportForm(str, Enum):
    """What ``polyak report`` writes."""

    html = "html"
    json = "json"
    csv = "csv"


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
        typer.Argument(
            help=f"{', '.join(BUILTIN)}, your data as {', '.join(f'{name}:path' for name in FROM_FILES)}, "
            "or your own as path/to/file.py:function."
        ),
    ],
    methods: Annotated[
        str,
        typer.Option(
            help="The methods, separated by commas: see `polyak list`, or a dotted name such as torch.optim.AdamW, "
            "or your own as path/to/file.py:function."
        ),
    ] = ",".join(METHODS),
    space: Annotated[
        list[str] | None,
        typer.Option(
            help="Where to look for a setting: lr=1e-5:1e-1:log (a range, here a logarithmic one), momentum=0.8,0.9 "
            "(choices), or of one method alone torch.optim.AdamW.lr=1e-4:1e-2:log. May be repeated."
        ),
    ] = None,
    fix: Annotated[
        list[str] | None, typer.Option(help="A value that is not searched: momentum=0.9. May be repeated.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The method that the others are compared to; by default the first.")
    ] = None,
    trials: Annotated[int | None, typer.Option(help=f"Tuning runs of each method. [default: {TRIALS}]")] = None,
    seeds: Annotated[
        int | None, typer.Option(help=f"Runs of each method at its best setting. [default: {SEEDS}]")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="A time, such as 30m or 2h, that says how many trials and seeds there are.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of a run, instead of the problem's own number.")] = None,
    tuning_seed: Annotated[
        int, typer.Option(help="Another number does everything again, with other trials and other seeds.")
    ] = 0,
    margin: Annotated[
        float | None,
        typer.Option(help="The difference of the metric that does not matter; by default what seeds make of it."),
    ] = None,
    confidence: Annotated[float, typer.Option(help="The chance that no call on a problem is false.")] = CONFIDENCE,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which a run is ended.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only look at the problems: whether they run, and how long it would take.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Runs made at a time; by default one for each core.")] = None,
    store: Annotated[Path, typer.Option(help="The file that keeps the runs.")] = STORE,
    report: Annotated[Path, typer.Option(help="The HTML report.")] = Path("polyak-report.html"),
) -> None:
    """Tune each method with the same budget, then judge it on data that tuning never read.

    Stop it at any moment: the same command goes on where it was.
    """
    workers = checked_workers(workers)
    check_report_path(report, store)
    check_levels(margin, confidence)
    if budget is not None and (trials is not None or seeds is not None):
        given = "--trials" if seeds is None else "--seeds"
        raise BadInput(f"--budget and {given} contradict each other: a budget says how many there are; leave one out")
    if check and budget is not None:
        raise BadInput("--check makes no run and --budget learns from the first ones how many fit; leave one out")
    names = [name.strip() for name in methods.split(",") if name.strip()]
    campaign = plan(
        problems, names, trials, seeds, steps,
        spaces=space or (), fixes=fix or (), reference=reference, tuning_seed=tuning_seed,
    )  # fmt: skip
    try:
        if budget is not None:
            campaign = fit(campaign, budget, store, workers, timeout=timeout)
            typer.echo(f"{budget}: {campaign.trials} trials and {campaign.seeds} seeds of each method", err=True)
        if not check:  # what cannot be is said before anything else
            check_timeout(timeout, campaign)
            Store(store).close()
        typer.echo("\n".join(estimate(campaign, workers)), err=not check)
        if check:
            return
        with terminal.LiveProgress(campaign) as progress:
            command = shlex.join(["polyak", *sys.argv[1:]])
            found = run(campaign, store, workers, progress, timeout, command, margin, confidence)
    except KeyboardInterrupt:
        typer.echo(f"stopped; the ended runs are in {store}, and the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    write_report(found, report)
    terminal.print_report(found, terminal.console())
    typer.echo(f"report: {report}    runs: {store}")
    if found.errors:
        terminal.print_errors(found, terminal.console(stderr=True))
    for problem in found.empty():
        typer.echo(f"{problem}: no method came to a result", err=True)
    if found.errors or found.empty():
        raise typer.Exit(1)


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
