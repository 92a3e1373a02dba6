"""The comparison from beginning to end, for the command line and for programs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from polyak import optim
from polyak.lab import html
from polyak.lab.campaign import Campaign
from polyak.lab.check import look
from polyak.lab.errors import BadInput, LabError
from polyak.lab.problems import load, stop_if_loading
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
    stop_if_loading()
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
    loaded = [replace(each, fingerprint=look(each, methods, steps).fingerprint) for each in loaded]
    return Campaign(loaded, list(dict.fromkeys(methods)), trials, seeds, steps)


def compare(
    campaign: Campaign,
    store: Path,
    workers: int | None = None,
    watcher: Watcher | None = None,
    timeout: float | None = None,
) -> Report:
    """Make the runs that ``store`` does not have yet, and summarize all of them.

    Args:
        campaign: what :func:`plan` returned.
        store: the SQLite file of runs; made where it does not exist.
        workers: how many runs are made at a time, by default one for each core. It changes no figure but times.
        watcher: is told when runs begin, go on and end.
        timeout: the seconds after which a run is ended; None waits for ever.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 1:
        raise BadInput(f"workers must be at least 1, got {workers}")
    runs = Store(store)
    try:
        return summarize(campaign, make_runs(campaign, runs, workers, watcher or Unwatched(), timeout))
    finally:
        runs.close()


def check_report_path(path: Path) -> None:
    """Refuse a report that could not be written, before hours are spent on it."""
    if path.is_dir():
        raise BadInput(f"the report {str(path)!r} is a folder; name a file")
    if not path.parent.is_dir():
        raise BadInput(f"there is no folder {str(path.parent)!r} for the report")


def write_report(report: Report, path: Path) -> None:
    """Write the HTML report, whole or not at all."""
    handle, temporary = -1, ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(handle, "w", encoding="utf-8") as file:
            file.write(html.render(report))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True) if temporary else None
        raise LabError(f"cannot write the report {str(path)!r}: {error.strerror}; all runs are kept") from error
