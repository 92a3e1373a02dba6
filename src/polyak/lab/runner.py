"""Makes the runs of a comparison that the store does not have yet."""

from __future__ import annotations

import time
from multiprocessing import connection
from types import TracebackType
from typing import Protocol

from polyak.lab.campaign import Campaign
from polyak.lab.spec import Record, RunSpec
from polyak.lab.store import Store
from polyak.lab.train import Outcome
from polyak.lab.worker import Worker

POLL_SECONDS = 0.5  # how soon the end of another process's run is noticed


class Watcher(Protocol):
    """Whoever wants to see the runs begin and end."""

    def began(self, spec: RunSpec) -> None:
        """A worker has begun a run."""

    def ended(self, record: Record, here: bool) -> None:
        """A run has ended: made just now (``here``) or found in the store."""


def make_runs(campaign: Campaign, store: Store, workers: int, watcher: Watcher) -> dict[str, Record]:
    """Make every missing run and return all records of the comparison; a run another process is at is awaited."""
    records: dict[str, Record] = {}
    stored = {record.key: record for record in store.settled()}

    def note(record: Record, here: bool) -> None:
        records[record.key] = record
        watcher.ended(record, here)

    with _Pool(workers) as pool:
        while due := campaign.due(records):
            found = [stored[spec.key] for spec in due if spec.key in stored]
            found = found or _hand_out(due, store, pool, watcher)
            for record in found:
                note(record, here=False)
            if found:
                continue  # they may have made other runs due
            for spec, outcome in pool.ended(POLL_SECONDS):
                note(store.finish(spec, outcome), here=True)
            store.renew()
    return records


def _hand_out(due: list[RunSpec], store: Store, pool: _Pool, watcher: Watcher) -> list[Record]:
    """Begin as many of the due runs as there are idle workers; return those that another process has ended."""
    found: list[Record] = []
    for spec in due:
        if pool.full:
            break
        if spec.key in pool.keys:
            continue
        answer = store.claim(spec)
        if isinstance(answer, Record):
            found.append(answer)
        elif answer == "mine":
            pool.begin(spec)
            watcher.began(spec)
    return found


class _Pool:
    """Workers that are started when there is something to do and replaced when they die."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._workers: list[Worker] = []

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in self._workers:
            worker.stop()

    @property
    def keys(self) -> set[str]:
        """The runs under way."""
        return {worker.spec.key for worker in self._workers if worker.spec}

    @property
    def full(self) -> bool:
        """Whether nobody is idle."""
        return len(self.keys) == self._size

    def begin(self, spec: RunSpec) -> None:
        """Give a run to an idle worker."""
        idle = [worker for worker in self._workers if worker.spec is None]
        if not idle:
            idle = [Worker()]
            self._workers += idle
        idle[0].begin(spec)

    def ended(self, timeout: float) -> list[tuple[RunSpec, Outcome]]:
        """The runs that ended, after waiting ``timeout`` seconds at most for the first."""
        busy = {worker.pipe: worker for worker in self._workers if worker.spec}
        if not busy:
            time.sleep(timeout)
            return []
        outcomes = []
        for pipe in connection.wait(list(busy), timeout):
            worker = busy[pipe]  # type: ignore[index]
            spec, outcome, lives = worker.collect()
            outcomes.append((spec, outcome))
            if not lives:
                worker.stop()
                self._workers.remove(worker)
        return outcomes
