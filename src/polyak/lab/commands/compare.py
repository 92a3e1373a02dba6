"""``polyak compare``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from polyak.lab import terminal
from polyak.lab.budget import estimate
from polyak.lab.clear import MOST_SEEDS
from polyak.lab.commands.app import app
from polyak.lab.comparison import STORE, fit, run
from polyak.lab.described import CONFIDENCE, check_levels
from polyak.lab.errors import BadInput
from polyak.lab.live import port_of
from polyak.lab.mounts import warning_of
from polyak.lab.places import ENGINES, Places
from polyak.lab.planning import METHODS, SEEDS, TRIALS, plan
from polyak.lab.problems import BUILTIN, FROM_FILES
from polyak.lab.results import check_report_path, write_report
from polyak.lab.store import Store


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
    until_clear: Annotated[
        bool, typer.Option("--until-clear", help="Then add seeds where a call is open and more would settle it.")
    ] = False,
    most_seeds: Annotated[
        int | None, typer.Option(help=f"How many seeds --until-clear may come to. [default: {MOST_SEEDS}]")
    ] = None,
    self_test: Annotated[
        int | None,
        typer.Option(help="Compare one method with itself under so many names: a difference that is called is false."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which a run is ended.")] = None,
    timing: Annotated[
        bool,
        typer.Option(
            help="In the end time each method's step alone, in turn with the others, where runs were made beside each "
            "other: for 5 % of the time at most, or 20 s."
        ),
    ] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Only look at the problems: whether they run, and how long it would take.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Serve the report on 127.0.0.1 while the comparison runs.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(help="Where --live serves; one that is in use is left for a free one.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Runs made at a time; by default one on each device, or for each core.")
    ] = None,
    devices: Annotated[
        str, typer.Option(help="What runs are made on: cuda:0,cuda:1 or cpu. By default problems choose.")
    ] = "",
    engine: Annotated[str, typer.Option(help=f"What makes the runs: {' or '.join(ENGINES)}.")] = ENGINES[0],
    address: Annotated[
        str | None, typer.Option(help="With --engine ray the cluster: HOST:PORT, or auto for one of this machine.")
    ] = None,
    store: Annotated[Path, typer.Option(help="The file that keeps the runs.")] = STORE,
    report: Annotated[Path, typer.Option(help="The HTML report.")] = Path("polyak-report.html"),
) -> None:
    """Tune each method with the same budget, then judge it on data that tuning never read.

    Stop it at any moment: the same command goes on where it was.
    """
    places = Places(workers, timeout, _split(devices), engine, address)
    check_report_path(report, store)
    check_levels(margin, confidence)
    served = live if port is None else port
    port_of(served)  # what cannot be is refused before anything runs
    if budget is not None:
        _refuse_beside_budget(trials, seeds, until_clear, check)
    if check and until_clear:
        raise BadInput("--check makes no run and --until-clear goes on making them; leave one out")
    if warning := warning_of(store):
        typer.echo(warning, err=True)
    campaign = plan(
        problems, _split(methods), trials, seeds, steps,
        spaces=space or (), fixes=fix or (), reference=reference, tuning_seed=tuning_seed,
        until_clear=until_clear, most_seeds=most_seeds, self_test=self_test, places=places,
    )  # fmt: skip
    try:
        if budget is not None:
            campaign = fit(campaign, budget, store, places)
            typer.echo(f"{budget}: {campaign.trials} trials and {campaign.seeds} seeds of each method", err=True)
        if not check:  # what cannot be is said before anything else
            Store(store).close()
        typer.echo("\n".join(estimate(campaign, places.size)), err=not check)
        if check:
            return
        if campaign.most_seeds is not None:
            typer.echo(f"then up to {campaign.most_seeds} seeds of a method, where they decide", err=True)
        with terminal.LiveProgress(campaign) as progress:
            command = shlex.join(["polyak", *sys.argv[1:]])
            found = run(campaign, store, places, progress, command, margin, confidence, timing, served).report
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


def _refuse_beside_budget(trials: int | None, seeds: int | None, until_clear: bool, check: bool) -> None:
    """Refuse what contradicts a budget of time."""
    if trials is not None or seeds is not None:
        given = "--trials" if seeds is None else "--seeds"
        raise BadInput(f"--budget and {given} contradict each other: a budget says how many there are; leave one out")
    if until_clear:
        raise BadInput("--budget ends after a time and --until-clear when calls are settled; leave one out")
    if check:
        raise BadInput("--check makes no run and --budget learns from the first ones how many fit; leave one out")


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())
