"""Makes the runs of a comparison that the store does not have yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

from polyak.lab.campaign import Campaign
from polyak.lab.errors import LabError
from polyak.lab.here import Here
from polyak.lab.places import Places
from polyak.lab.pool import Pool, Told
from polyak.lab.problem import Problem
from polyak.lab.ray_pool import RayPool
from polyak.lab.spec import LOST, Record, Records, RunSpec
from polyak.lab.stopping import answers
from polyak.lab.store import Store

POLL_SECONDS = 0.5  # how soon the end of another process's run is noticed
SYSTEMATIC = 3  # failures for one reason, before any run of a problem has come to something

Hands = Pool | Here | RayPool  # what makes the runs


class Watcher(Protocol):
    """Whoever wants to see the runs begin, go on and end."""

    def began(self, spec: RunSpec) -> None:
        """A worker has begun a run."""

    def progress(self, spec: RunSpec, step: int, steps: int | None) -> None:
        """A run has come to a step, of so many where that is known; about once a second."""

    def ended(self, record: Record, here: bool) -> None:
        """A run has ended: made just now (``here``) or found in the store."""


Grow = Callable[[Campaign, Records], Campaign | None]


def _stays(campaign: Campaign, records: Records) -> None:
    """Adds nothing to a comparison that has ended."""


def make_runs(
    campaign: Campaign, store: Store, places: Places, watcher: Watcher, grow: Grow = _stays
) -> dict[str, Record]:
    """Make every missing run and return all records of the comparison; a run another process is at is awaited.

    Args:
        campaign: what is to be made.
        store: where runs are found and kept.
        places: where they are made; a problem that only this process knows is run in it, alone.
        watcher: is told how they go.
        grow: is given the comparison and its records when all runs are made; makes a larger one of it, or ends it.

    Raises:
        LabError: when a problem has changed, is not the same in every process, or fails systematically.
    """
    problems = {loaded.reference: loaded.problem for loaded in campaign.problems}
    records: dict[str, Record] = {}
    stored = {record.key: record for record in store.settled()}
    faults = _Faults()

    def fits(spec: RunSpec, record: Record) -> bool:
        return answers(problems[spec.reference], spec, record)

    def note(record: Record, spec: RunSpec, here: bool) -> None:
        records[spec.key] = _as_named_now(record, problems[spec.reference])
        watcher.ended(records[spec.key], here)
        faults.note(records[spec.key])

    with _pool(campaign, places, watcher.progress) as pool:
        grown: Campaign | None = campaign
        while grown is not None:
            campaign = grown
            while due := campaign.due(records):
                found = [
                    (stored[spec.key], spec) for spec in due if spec.key in stored and fits(spec, stored[spec.key])
                ]
                found = found or _hand_out(due, store, pool, watcher, fits)
                for record, spec in found:
                    note(record, spec, here=False)
                if found:
                    continue  # they may have made other runs due
                for spec, outcome in pool.ended(POLL_SECONDS):
                    note(store.finish(spec, outcome), spec, here=True)
                store.renew()
            grown = grow(campaign, records)
    return records


def _pool(campaign: Campaign, places: Places, told: Told) -> Hands:
    if any(loaded.is_here for loaded in campaign.problems):
        return Here({loaded.reference: loaded.problem for loaded in campaign.problems}, told)
    return RayPool(places, told) if places.engine == "ray" else Pool(places, told)


def _as_named_now(record: Record, problem: Problem) -> Record:
    """A stored run with the problem's present name and target, which may be others than when it was made."""
    return replace(record, problem=problem.name, detail=problem.with_target(record.detail))


class _Faults:
    """Ends a comparison in which a problem only fails."""

    def __init__(self) -> None:
        self._failed: Counter[tuple[str, str]] = Counter()
        self._sound: set[str] = set()

    def note(self, record: Record) -> None:
        """Take the end of a run into account."""
        if record.status == "timeout":  # another setting or method may be faster
            return
        if record.status not in LOST:
            self._sound.add(record.problem)
            return
        reason = record.detail.get("reason", "")
        self._failed[record.problem, reason] += 1
        if record.problem not in self._sound and self._failed[record.problem, reason] >= SYSTEMATIC:
            raise LabError(f"{record.problem} fails in every run: {reason}")


def _hand_out(
    due: list[RunSpec], store: Store, pool: Hands, watcher: Watcher, fits: Callable[[RunSpec, Record], bool]
) -> list[tuple[Record, RunSpec]]:
    """Begin as many of the due runs as there are idle workers; return those that another process has ended."""
    found: list[tuple[Record, RunSpec]] = []
    for spec in due:
        if pool.full:
            break
        if spec.key in pool.keys:
            continue
        answer = store.claim(spec, partial(fits, spec))
        if isinstance(answer, Record):
            found.append((answer, spec))
        elif answer == "mine":
            pool.begin(spec)
            watcher.began(spec)
    return found
