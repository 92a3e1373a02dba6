"""The comparison from beginning to end, for programs and for the command line."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyak.lab import budget as budgets
from polyak.lab.campaign import Campaign
from polyak.lab.check import look
from polyak.lab.described import CONFIDENCE, check_levels
from polyak.lab.entries import Fixes, Optimizer, Spaces, entries
from polyak.lab.errors import BadInput, LabError
from polyak.lab.files import stop_if_loading
from polyak.lab.history import describe, described
from polyak.lab.problem import Problem
from polyak.lab.problems import LoadedProblem, load
from polyak.lab.results import Results
from polyak.lab.runner import Watcher, make_runs
from polyak.lab.spec import Record, RunSpec
from polyak.lab.store import Store

TRIALS, SEEDS = 10, 5
METHODS = ("adamw", "sgd", "adan", "lion", "muon", "cadamw")
STORE = Path("polyak-runs.db")

Given = str | Problem | Callable[[], Problem]  # a problem, as it may be given


class Unwatched:
    """Watches nothing."""

    def began(self, spec: RunSpec) -> None:
        """A worker has begun a run."""

    def progress(self, spec: RunSpec, step: int, steps: int | None) -> None:
        """A run has come to a step."""

    def ended(self, record: Record, here: bool) -> None:
        """A run has ended."""


class _Noting:
    """Tells the store which runs a comparison has, and passes everything on."""

    def __init__(self, store: Store, identity: str, watcher: Watcher) -> None:
        self._store, self._identity, self._watcher = store, identity, watcher

    def began(self, spec: RunSpec) -> None:
        self._watcher.began(spec)

    def progress(self, spec: RunSpec, step: int, steps: int | None) -> None:
        self._watcher.progress(spec, step, steps)

    def ended(self, record: Record, here: bool) -> None:
        self._store.note(self._identity, record.key, record.problem)
        self._watcher.ended(record, here)


def compare(
    problems: Given | Sequence[Given],
    methods: Optimizer | Sequence[Optimizer] = METHODS,
    *,
    trials: int | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    spaces: Spaces = (),
    fixes: Fixes = (),
    reference: str | None = None,
    tuning_seed: int = 0,
    store: Path | str = STORE,
    workers: int | None = None,
    watcher: Watcher | None = None,
    timeout: float | None = None,
    margin: float | None = None,
    confidence: float = CONFIDENCE,
) -> Results:
    """Tune each method with the same budget, then judge it on data that tuning never read.

    ::

        found = polyak.lab.compare("digits-cnn", ["adamw", "torch.optim.AdamW"], spaces=["lr=1e-4:1e-2:log"])
        print(found)  # the verdict, a sentence for each problem
        found.table()
        found.save("report.html")

    Problems that are given by name, by file or as a function that returns one, of a notebook too, are run by workers
    and found again in the store. A :class:`Problem` itself is known to this process alone: then all runs are made in
    it, one at a time, and a later process makes them again.

    Args:
        problems: names of built-in problems, ``path/to/file.py:function``, functions, or :class:`Problem` objects.
        methods: polyak's methods, dotted names such as ``torch.optim.AdamW``, or ``path/to/file.py:function``; or the
            classes and functions themselves.
        trials: settings that are tried of each method, 10 by default.
        seeds: runs of each method at its chosen setting, 5 by default.
        steps: steps of a run, where the problem's own number is not wanted.
        spaces: where to look: a dict such as ``{"lr": "1e-5:1e-1:log", "adamw.lr": Range(1e-4, 1e-2)}``, or texts as
            of ``--space``: ``"lr=1e-5:1e-1:log"``.
        fixes: values that are not searched: a dict such as ``{"momentum": 0.9}``, or texts as of ``--fix``.
        reference: the method that others are compared to, by default the first.
        tuning_seed: another one does everything again with other trials and seeds.
        store: the SQLite file of runs; made where it does not exist.
        workers: how many runs are made at a time, by default one for each core. It changes no figure but times.
        watcher: is told when runs begin, go on and end.
        timeout: the seconds after which a run is ended; None waits for ever.
        margin: the difference, in units of the metric, that does not matter; None for the spread of the reference's
            seeds.
        confidence: the chance that no difference called on a problem is false; of no false equivalence it is larger.

    Raises:
        BadInput: something asked for does not exist or cannot be.
    """
    check_levels(margin, confidence)
    checked_workers(workers)
    if not isinstance(store, (str, Path)):
        raise BadInput(f"store must be the path of a file, got {store!r}")
    made = plan(
        problems, methods, trials, seeds, steps,
        spaces=spaces, fixes=fixes, reference=reference, tuning_seed=tuning_seed,
    )  # fmt: skip
    return run(made, Path(store), workers, watcher, timeout, "polyak.lab.compare", margin, confidence)


def plan(
    problems: Given | Sequence[Given],
    methods: Optimizer | Sequence[Optimizer],
    trials: int | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    *,
    spaces: Spaces = (),
    fixes: Fixes = (),
    reference: str | None = None,
    tuning_seed: int = 0,
) -> Campaign:
    """Check what is asked for, look at each problem and plan; the arguments are those of :func:`compare`."""
    stop_if_loading()
    for name, value in (("trials", trials), ("seeds", seeds), ("steps", steps)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise BadInput(f"{name} must be at least 1, got {value!r}")
    if isinstance(tuning_seed, bool) or not isinstance(tuning_seed, int) or tuning_seed < 0:
        raise BadInput(f"tuning_seed must be an integer from 0, got {tuning_seed!r}")
    contenders = entries(_listed(methods, "method"), spaces, fixes)
    loaded = [load(each) for each in _listed(problems, "problem")]
    names = [each.problem.name for each in loaded]
    if len(set(names)) < len(names):
        raise BadInput(f"two problems have the same name: {', '.join(names)}")
    if not loaded:
        raise BadInput("name at least one problem and one method")
    counts = (TRIALS if trials is None else trials, SEEDS if seeds is None else seeds)
    asked = Campaign(loaded, contenders, *counts, steps, reference=reference, tuning_seed=tuning_seed)
    return asked.with_problems([_looked_at(asked, each) for each in loaded])


def _looked_at(campaign: Campaign, loaded: LoadedProblem) -> LoadedProblem:
    """A problem with what a look at it says."""
    found = look(loaded, campaign.contenders.values(), campaign.steps)
    return replace(loaded, fingerprint=found.fingerprint, seconds_per_run=found.seconds_per_run)


def _listed(given: object, kind: str) -> list[Any]:
    """One or several of something as a list without repetitions."""
    several = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    for each in several:
        if not (isinstance(each, str) or callable(each) or (kind == "problem" and isinstance(each, Problem))):
            raise BadInput(f"a {kind} cannot be {each!r}")
    return [each for i, each in enumerate(several) if each not in several[:i]]


def fit(
    campaign: Campaign,
    budget: str,
    store: Path,
    workers: int | None = None,
    watcher: Watcher | None = None,
    timeout: float | None = None,
) -> Campaign:
    """The same comparison with as many trials and seeds as fit a time.

    How long a run takes is learnt from the first trial of each method, which is made now if the store does not have
    it. So the same call gives the same comparison again.

    Args:
        campaign: the comparison; its own counts do not matter.
        budget: a time such as ``30m``.
        store: the SQLite file of runs.
        workers: how many runs are made at a time.
        watcher: is told when runs begin, go on and end.
        timeout: the seconds after which a run is ended; None waits for ever.
    """
    seconds, at_a_time = budgets.seconds(budget), checked_workers(workers)
    check_timeout(timeout, campaign)
    first = campaign.with_counts(1, 0)
    runs = Store(store)
    try:
        records = make_runs(first, runs, at_a_time, watcher or Unwatched(), timeout)
    finally:
        runs.close()
    took = [budgets.whole_run(record) for record in records.values()]
    known = [each for each in took if each is not None]
    if not known:
        errors = [str(record.detail.get("error", "")).strip().splitlines() for record in records.values()]
        raise LabError(f"no first trial came to an end, so there is nothing to plan by: {(errors[0] or ['?'])[-1]}")
    found = budgets.counts(seconds, known, at_a_time)
    return campaign.with_counts(found.trials, found.seeds)


def run(
    campaign: Campaign,
    store: Path,
    workers: int | None = None,
    watcher: Watcher | None = None,
    timeout: float | None = None,
    command: str = "",
    margin: float | None = None,
    confidence: float = CONFIDENCE,
) -> Results:
    """Make the runs that ``store`` does not have yet, and summarize all of them.

    Args:
        campaign: what :func:`plan` returned.
        store: the SQLite file of runs; made where it does not exist.
        workers: how many runs are made at a time, by default one for each core.
        watcher: is told when runs begin, go on and end.
        timeout: the seconds after which a run is ended; None waits for ever.
        command: what was typed, for the report.
        margin: the difference, in units of the metric, that does not matter; None for the spread of the reference's
            seeds.
        confidence: the chance that no difference called on a problem is false; of no false equivalence it is larger.
    """
    at_a_time = checked_workers(workers)
    check_timeout(timeout, campaign)
    check_levels(margin, confidence)
    runs = Store(store)
    try:
        told = describe(campaign, command, margin, confidence)
        runs.begin(campaign.identity, told)
        noting = _Noting(runs, campaign.identity, watcher or Unwatched())
        return Results(described(told), make_runs(campaign, runs, at_a_time, noting, timeout))
    finally:
        runs.close()


def checked_workers(workers: int | None) -> int:
    """How many runs are made at a time."""
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise BadInput(f"workers must be at least 1, got {workers!r}")
    return os.cpu_count() or 1 if workers is None else workers


def check_timeout(timeout: float | None, campaign: Campaign) -> None:
    """Refuse a time that cannot be, or that nobody could keep."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        raise BadInput(f"timeout must be a number of seconds above 0, got {timeout!r}")
    if any(loaded.is_here for loaded in campaign.problems):
        raise BadInput("timeout needs a worker that can be ended; give the function that returns the Problem instead")
