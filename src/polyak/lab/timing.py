"""The times of methods, measured alone and in turn when all runs have ended.

Runs are made beside each other, so their times say as much about the neighbours as about the method. So each method's
chosen setting runs again for a moment, A B C A B C, in one process with nothing beside it. That decides nothing but
times, is no part of a comparison's runs, and takes at most :data:`SHARE` of their time, or :data:`LEAST_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Mapping

from polyak.lab.campaign import Campaign
from polyak.lab.described import Timed
from polyak.lab.errors import LabError
from polyak.lab.moments import TimingRequest
from polyak.lab.places import Places
from polyak.lab.pool import ask
from polyak.lab.problems import LoadedProblem
from polyak.lab.ray_pool import RayPool
from polyak.lab.spec import Records, RunSpec

SHARE, LEAST_SECONDS = 0.05, 20.0
LATE = 60.0  # seconds that it may take beyond what it was given: to load problems, and for a step that takes long


def timed_alone(campaign: Campaign, records: Records, places: Places, known: Mapping[str, Timed]) -> dict[str, Timed]:
    """The times of every method at its chosen setting, by problem.

    Args:
        campaign: a comparison whose runs have ended.
        records: these runs.
        places: where they were made; where that was one at a time their own times compare, and nothing is done.
        known: what was measured before; it is kept where it is of the same settings.
    """
    chosen = {loaded.problem.name: _chosen(campaign, loaded, records) for loaded in campaign.problems}
    found = {name: known[name] for name, specs in chosen.items() if name in known and _fits(known[name], specs)}
    missing = {name: specs for name, specs in chosen.items() if specs and name not in found}
    is_alone = any(loaded.is_here for loaded in campaign.problems) or (places.engine != "ray" and places.size == 1)
    if missing and not is_alone:
        took = sum(record.detail.get("timing", {}).get("total_seconds") or 0.0 for record in records.values())
        seconds = max(LEAST_SECONDS, SHARE * took / places.size)
        measured = _asked(TimingRequest(tuple(missing.values()), seconds), places)
        found |= {name: each for name, each in zip(missing, measured, strict=False) if each is not None}
    return found


def _chosen(campaign: Campaign, loaded: LoadedProblem, records: Records) -> tuple[RunSpec, ...]:
    best = (campaign.best_trial(loaded, method, records) for method in campaign.methods)
    return tuple(spec for spec in best if spec is not None)


def _fits(timed: Timed, specs: tuple[RunSpec, ...]) -> bool:
    return all(timed.times(spec.method, spec.setting) for spec in specs)


def _asked(request: TimingRequest, places: Places) -> list[Timed | None]:
    """What a worker measured; nothing where it failed, since the runs have times of their own."""
    patience = request.seconds + LATE
    try:
        if places.engine == "ray":
            with RayPool(places) as pool:
                return list(pool.ask(request, patience))
        return list(ask(request, places.first, patience))
    except LabError:
        return []
