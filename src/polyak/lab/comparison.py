"""The comparison from beginning to end, for programs and for the command line."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polyak.lab import budget as budgets
from polyak.lab.campaign import Campaign
from polyak.lab.clear import GrowthWatcher, Looking, level, looks
from polyak.lab.described import CONFIDENCE, check_levels
from polyak.lab.entries import Fixes, Optimizer, Spaces
from polyak.lab.errors import BadInput, LabError
from polyak.lab.history import describe, described, timed_of
from polyak.lab.live import LivePage, port_of
from polyak.lab.mounts import warning_of
from polyak.lab.pace import Pace
from polyak.lab.places import Places
from polyak.lab.planning import HERE, METHODS, Given, plan
from polyak.lab.results import Results
from polyak.lab.runner import Watcher, make_runs
from polyak.lab.spec import Record, Records, RunSpec
from polyak.lab.store import Store
from polyak.lab.timing import timed_alone

STORE = Path("polyak-runs.db")


class Unwatched:
    """Watches nothing."""

    def began(self, spec: RunSpec) -> None:
        """A worker has begun a run."""

    def progress(self, spec: RunSpec, step: int, steps: int | None) -> None:
        """A run has come to a step."""

    def ended(self, record: Record, here: bool) -> None:
        """A run has ended."""


class _Noting:
    """Tells the store which runs a comparison has, counts them, and passes everything on."""

    def __init__(self, store: Store, identity: str, watcher: Watcher, pace: Pace) -> None:
        self._store, self._identity, self._watcher, self.pace = store, identity, watcher, pace

    def began(self, spec: RunSpec) -> None:
        self.pace.began(spec)
        self._watcher.began(spec)

    def progress(self, spec: RunSpec, step: int, steps: int | None) -> None:
        self.pace.progress(spec, step, steps)
        self._watcher.progress(spec, step, steps)

    def ended(self, record: Record, here: bool) -> None:
        self._store.note(self._identity, record.key, record.problem)
        self.pace.ended(record, here)
        self._watcher.ended(record, here)

    def grew(self, plan: Campaign, why: str) -> None:
        self.pace.grew(plan)
        if isinstance(self._watcher, GrowthWatcher):
            self._watcher.grew(plan, why)


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
    until_clear: bool = False,
    most_seeds: int | None = None,
    self_test: int | None = None,
    store: Path | str = STORE,
    workers: int | None = None,
    watcher: Watcher | None = None,
    timeout: float | None = None,
    devices: str | Sequence[str] = (),
    engine: str = "processes",
    address: str | None = None,
    margin: float | None = None,
    confidence: float = CONFIDENCE,
    timing: bool = True,
    live: bool | int = False,
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
        until_clear: whether seeds are added, after the others, where a call is open and more would settle it. The
            verdict is then looked at up to four times, each time at a level at which all looks hold together.
        most_seeds: how many seeds a method may come to with ``until_clear``, 40 by default.
        self_test: compares one method with itself under so many names, each tuned on its own: a difference that is
            called is a false one.
        store: the SQLite file of runs; made where it does not exist.
        workers: how many runs are made at a time, by default one on each device or for each core. It changes no
            figure but times.
        watcher: is told when runs begin, go on and end; where it has ``grew``, also of added seeds.
        timeout: the seconds after which a run is ended; None waits for ever.
        devices: what runs are made on, such as ``["cuda:0", "cuda:1"]``; see :class:`~polyak.lab.places.Places`.
        engine: ``"processes"`` of this machine, or ``"ray"``.
        address: of a Ray cluster, ``"HOST:PORT"`` or ``"auto"``.
        margin: the difference, in units of the metric, that does not matter; None for the spread of the reference's
            seeds.
        confidence: the chance that no difference called on a problem is false; of no false equivalence it is larger.
        timing: whether each method's step is timed alone in the end, in turn with the others, where runs were made
            beside each other; for 5 % of the time of all runs at most, or 20 s.
        live: serve the page on 127.0.0.1 while the comparison runs, on this port or, with True, on any that is free.

    Raises:
        BadInput: something asked for does not exist or cannot be.
    """
    check_levels(margin, confidence)
    if not isinstance(store, (str, Path)):
        raise BadInput(f"store must be the path of a file, got {store!r}")
    port_of(live)
    named = (devices,) if isinstance(devices, str) else tuple(devices)
    places = Places(workers, timeout, named, engine, address)
    if warning := warning_of(Path(store)):
        warnings.warn(warning, stacklevel=2)
    made = plan(
        problems, methods, trials, seeds, steps,
        spaces=spaces, fixes=fixes, reference=reference, tuning_seed=tuning_seed,
        until_clear=until_clear, most_seeds=most_seeds, self_test=self_test, places=places,
    )  # fmt: skip
    return run(made, Path(store), places, watcher, "polyak.lab.compare", margin, confidence, timing, live)


def fit(
    campaign: Campaign,
    budget: str,
    store: Path,
    places: Places = HERE,
    watcher: Watcher | None = None,
) -> Campaign:
    """The same comparison with as many trials and seeds as fit a time.

    How long a run takes is learnt from the first trial of each method, which is made now if the store does not have
    it. So the same call gives the same comparison again.

    Args:
        campaign: the comparison; its own counts do not matter.
        budget: a time such as ``30m``.
        store: the SQLite file of runs.
        places: where runs are made.
        watcher: is told when runs begin, go on and end.
    """
    if campaign.most_seeds is not None:
        raise BadInput("a budget ends after a time, until_clear when calls are settled; leave one out")
    seconds = budgets.seconds(budget)
    places.check(campaign)
    if places.engine == "ray" and places.workers is None:
        raise BadInput("a budget needs workers beside engine 'ray': how many runs the cluster makes at a time")
    first = campaign.with_counts(1, 0)
    runs = Store(store)
    try:
        records = make_runs(first, runs, places, watcher or Unwatched())
    finally:
        runs.close()
    took = [budgets.whole_run(record) for record in records.values()]
    known = [each for each in took if each is not None]
    if not known:
        errors = [str(record.detail.get("error", "")).strip().splitlines() for record in records.values()]
        raise LabError(f"no first trial came to an end, so there is nothing to plan by: {(errors[0] or ['?'])[-1]}")
    found = budgets.counts(seconds, known, places.size)
    return campaign.with_counts(found.trials, found.seeds)


def run(
    campaign: Campaign,
    store: Path,
    places: Places = HERE,
    watcher: Watcher | None = None,
    command: str = "",
    margin: float | None = None,
    confidence: float = CONFIDENCE,
    timing: bool = True,
    live: bool | int = False,
) -> Results:
    """Make the runs that ``store`` does not have yet, and summarize all of them.

    With ``until_clear`` seeds are added, and runs made, until all is settled that seeds can settle.

    Args:
        campaign: what :func:`plan` returned.
        store: the SQLite file of runs; made where it does not exist.
        places: where runs are made.
        watcher: is told when runs begin, go on and end; where it has ``grew``, also of added seeds.
        command: what was typed, for the report.
        margin: the difference, in units of the metric, that does not matter; None for the spread of the reference's
            seeds.
        confidence: the chance that no difference called on a problem is false; of no false equivalence it is larger.
        timing: whether each method's step is timed alone in the end, where runs were made beside each other.
        live: serve the page on 127.0.0.1 meanwhile, on this port or, with True, on any that is free.
    """
    places.check(campaign)
    port = port_of(live)
    check_levels(margin, confidence)
    runs = Store(store)
    try:
        told = describe(campaign, command, margin, level(campaign, confidence), looks(campaign))
        told["timed"] = runs.description(campaign.identity).get("timed", {})
        runs.begin(campaign.identity, told)
        noting = _Noting(runs, campaign.identity, watcher or Unwatched(), Pace(campaign))
        looking = Looking(runs, told, noting)
        with nullcontext() if port is None else _page(store, port, campaign, noting.pace):
            records = make_runs(campaign, runs, places, noting, looking)
            told = _timed(campaign, records, runs, places, looking.told) if timing else looking.told
        return Results(described(told), records)
    finally:
        runs.close()


def _timed(campaign: Campaign, records: Records, runs: Store, places: Places, told: dict[str, Any]) -> dict[str, Any]:
    """A comparison's description with the times of a step, measured now where they are not known."""
    known = timed_of(runs.description(campaign.identity))  # another process may have measured meanwhile
    timed = timed_alone(campaign, records, places, known)
    told = {**told, "timed": {problem: asdict(each) for problem, each in timed.items()}}
    runs.tell(campaign.identity, told)
    return told


def _page(store: Path, port: int, campaign: Campaign, pace: Pace) -> LivePage:
    """The live page of this comparison, whatever others the store has."""
    identity = campaign.identity
    return LivePage(store, port, lambda opened: opened.campaigns(identity)[0], pace)
