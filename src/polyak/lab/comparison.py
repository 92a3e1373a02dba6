"""The comparison from beginning to end, for the command line and for programs."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from polyak import optim
from polyak.lab.campaign import Campaign
from polyak.lab.described import Described
from polyak.lab.errors import BadInput
from polyak.lab.problems import load
from polyak.lab.report import Report, summarize
from polyak.lab.runner import Watcher, make_runs
from polyak.lab.spec import Record, RunSpec
from polyak.lab.store import Store


class Unwatched:
    """Watches nothing."""

    def began(self, spec: RunSpec) -> None:
        """A worker has begun a run."""

    def progress(self, spec: RunSpec, step: int, steps: int | None) -> None:
        """A run has come to a step."""

    def ended(self, record: Record, here: bool) -> None:
        """A run has ended."""


def plan(
    problems: Sequence[str], methods: Sequence[str], trials: int = 10, seeds: int = 5, steps: int | None = None
) -> Campaign:
    """Check what is asked for and plan it.

    Args:
        problems: names of built-in problems or ``path/to/file.py:function``.
        methods: names of optimizers.
        trials: tuning runs of each method.
        seeds: runs of each method at its best setting.
        steps: steps of a run, where the problem's own number is not wanted.
    """
    for name, value in (("trials", trials), ("seeds", seeds), ("steps", steps)):
        if value is not None and value < 1:
            raise BadInput(f"{name} must be at least 1, got {value}")
    for method in methods:
        try:
            optim.get(method)
        except ValueError as error:
            raise BadInput(str(error)) from error
    loaded = [load(reference) for reference in dict.fromkeys(problems)]
    names = [each.problem.name for each in loaded]
    if len(set(names)) < len(names):
        raise BadInput(f"two problems have the same name: {', '.join(names)}")
    if not loaded or not methods:
        raise BadInput("name at least one problem and one method")
    return Campaign(loaded, list(dict.fromkeys(methods)), trials, seeds, steps)


def compare(campaign: Campaign, store: Path, workers: int | None = None, watcher: Watcher | None = None) -> Report:
    """Make the runs that ``store`` does not have yet, and summarize all of them.

    Args:
        campaign: what :func:`plan` returned.
        store: the SQLite file of runs; made where it does not exist.
        workers: how many runs are made at a time, by default one for each core. It changes no figure but times.
        watcher: is told when runs begin and end.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 1:
        raise BadInput(f"workers must be at least 1, got {workers}")
    runs = Store(store)
    try:
        return summarize(describe(campaign), make_runs(campaign, runs, workers, watcher or Unwatched()))
    finally:
        runs.close()


def describe(campaign: Campaign) -> list[Described]:
    """What the report says of each problem beside its runs. The first method is what others are compared to."""
    spaces = {method: optim.get(method).search_space for method in campaign.methods}
    machine = f"{platform.node()}: {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return [
        Described(
            problem=loaded.problem.name,
            description=loaded.problem.description,
            metric=loaded.problem.metric,
            higher_is_better=loaded.problem.higher_is_better,
            target=loaded.problem.target,
            steps=campaign.steps or loaded.problem.steps,
            methods=tuple(campaign.methods),
            reference=campaign.methods[0],
            spaces=spaces,
            margin=None,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            date=time.strftime("%Y-%m-%d %H:%M"),
            machine=machine,
        )
        for loaded in campaign.problems
    ]
