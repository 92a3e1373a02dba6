"""How many runs a comparison has: what fits a given time, and how many more seeds would settle what is open."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from polyak.lab.campaign import FINALISTS, Campaign, Place, reruns_for
from polyak.lab.errors import BadInput
from polyak.lab.spec import Record

UNITS = {"s": 1, "m": 60, "h": 3600}
SPENT = 0.9  # of a time budget: estimates are estimates
START_SECONDS = 4.0  # until a worker has imported torch and loaded a problem; all of them start at once
LEAST_TRIALS, MOST_TRIALS = 4, 50
LEAST_SEEDS, MOST_SEEDS = 3, 100


@dataclass(frozen=True)
class Counts:
    """How often each method is tried, and how many seeds its chosen setting gets."""

    trials: int
    seeds: int

    @property
    def rounds(self) -> int:
        """How many runs each method has at most."""
        return self.trials + FINALISTS * reruns_for(self.trials) + self.seeds


def seconds(text: str) -> float:
    """Read a time: ``90s``, ``30m``, ``2h`` or ``1.5h``."""
    number, unit = text.strip()[:-1], text.strip()[-1:]
    try:
        found = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        found = 0.0
    if not 0 < found < float("inf"):
        raise BadInput(f"budget must be a time such as 90s, 30m or 2h, got {text!r}")
    return found


def whole_run(record: Record) -> float | None:
    """The seconds that a whole run takes, by one that may have ended on the way; None where nothing was measured."""
    took, step = record.detail.get("timing", {}).get("total_seconds"), record.detail.get("step")
    if took is None:
        return None
    if record.status != "finished" and record.steps and step:
        took *= max(1.0, record.steps / step)
    return float(took)


def estimate(campaign: Campaign, workers: int) -> list[str]:
    """About how long a comparison will take, a line for each problem and one for all, by the looks at the problems."""
    start = 0.0 if any(loaded.is_here for loaded in campaign.problems) else START_SECONDS
    lines, total = list[str](), start
    for loaded in campaign.problems:
        runs, seconds = sum(campaign.runs_at(loaded, method) for method in campaign.methods), loaded.seconds_per_run
        at_a_time = 1 if loaded.is_here else min(workers, runs)
        if seconds is None:
            lines.append(f"{loaded.problem.name}: {runs} runs; how long one takes is not known before it has ended")
            continue
        total += runs * seconds / at_a_time
        place = "in this process" if loaded.is_here else f"on {at_a_time} worker{'s' * (at_a_time > 1)}"
        about = in_words(start + runs * seconds / at_a_time)
        lines.append(f"{loaded.problem.name}: {in_words(seconds)} a run, {runs} runs, about {about} {place}")
    is_known = all(loaded.seconds_per_run is not None for loaded in campaign.problems)
    return [*lines, f"all: about {in_words(total)}"] if len(lines) > 1 and is_known else lines


def in_words(seconds: float) -> str:
    """A time with as many digits as an estimate deserves."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def counts(budget: float, seconds_a_run: Sequence[float], workers: int) -> Counts:
    """What fits into a time: about as many trials as the rest together, beyond some fifty of them more seeds.

    Args:
        budget: seconds.
        seconds_a_run: what a run takes, an entry for each method on each problem.
        workers: runs made at a time.
    """
    a_round = sum(seconds_a_run) / min(workers, LEAST_SEEDS * len(seconds_a_run))  # the rest has nothing to do
    rounds = int(SPENT * budget / a_round)
    fitting = [
        plan
        for trials in range(LEAST_TRIALS, MOST_TRIALS + 1)
        if (plan := Counts(trials, max(LEAST_SEEDS, (trials + 1) // 2))).rounds <= rounds
    ]
    if not fitting:
        least = Counts(LEAST_TRIALS, LEAST_SEEDS).rounds * a_round / SPENT
        raise BadInput(
            f"a budget of {budget:g} s is too small: {LEAST_TRIALS} trials and {LEAST_SEEDS} seeds of each method need "
            f"about {least:.0f} s; give more, or name fewer methods, or take fewer --steps"
        )
    best = fitting[-1]
    return Counts(best.trials, min(MOST_SEEDS, best.seeds + rounds - best.rounds))


class Judged(Protocol):
    """What a verdict says of one method."""

    @property
    def method(self) -> str:
        """Its name."""

    @property
    def call(self) -> str:
        """Better, worse, equivalent or unsettled."""

    @property
    def seeds(self) -> int:
        """How many seeds both the method and the reference have."""

    @property
    def more_seeds(self) -> int | None:
        """About how many more seeds would settle it, where that is known."""


class Judging(Protocol):
    """What a verdict says of one problem."""

    @property
    def problem(self) -> str:
        """Its name."""

    @property
    def judgements(self) -> Sequence[Judged]:
        """One for each method but the reference."""


def more_seeds(verdicts: Iterable[Judging], campaign: Campaign, cap: int) -> dict[Place, int]:
    """The seeds to have, by problem and method, where the call is open and more would settle it; empty: stop.

    Differences are paired, so the reference gets as many seeds as the method that gets most. At most the number so far
    is added at a time, since an estimate from few seeds is a rough one. A method without any result gets none.

    Args:
        verdicts: one for each problem.
        campaign: the comparison that they judge.
        cap: no method gets more seeds than this.
    """
    wanted: dict[Place, int] = {}
    for verdict in verdicts:
        for one in verdict.judgements:
            now = campaign.seeds_at(verdict.problem, one.method)
            if one.call == "unsettled" and one.seeds and one.more_seeds and now < cap:
                wanted[verdict.problem, one.method] = min(now + one.more_seeds, 2 * now, cap)
    for problem, method in list(wanted):
        place = problem, campaign.reference
        wanted[place] = max(wanted.get(place, 0), wanted[problem, method], campaign.seeds_at(*place))
    return wanted
