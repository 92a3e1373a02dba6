"""Seeds spent where they decide: after each look at the verdict, more of them where a call is open.

Who looks several times, and stops when a call appears, calls too much. So the error is shared among the looks: each of
the at most :data:`LOOKS` is judged at ``1 - (1 - confidence) / LOOKS`` (Bonferroni), and whatever it is that ends the
looking, all intervals of all looks hold together at the confidence asked for. The last look is the verdict.

What a look asks for is a pure function of the records. So a comparison that was stopped goes through the same looks
again, finds their runs in the store, and goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from polyak.lab.budget import Judging, more_seeds
from polyak.lab.campaign import Campaign
from polyak.lab.history import described, seeds_so_far
from polyak.lab.report import summarize
from polyak.lab.spec import Records
from polyak.lab.store import Store

LOOKS = 4
MOST_SEEDS = 40


@runtime_checkable
class GrowthWatcher(Protocol):
    """A watcher that wants to know when seeds are added."""

    def grew(self, plan: Campaign, why: str) -> None:
        """The comparison has become this one."""


def looks(campaign: Campaign) -> int:
    """How often the verdict is looked at, at most."""
    return 1 if campaign.most_seeds is None else LOOKS


def level(campaign: Campaign, confidence: float) -> float:
    """The confidence of each look, so that all together have the one asked for."""
    return confidence if campaign.most_seeds is None else 1 - (1 - confidence) / LOOKS


def after_look(campaign: Campaign, verdicts: Iterable[Judging], number: int) -> Campaign | None:
    """The comparison with more seeds where they decide; ``None`` where it ends.

    Args:
        campaign: the comparison as it was looked at.
        verdicts: what the look said, one for each problem.
        number: of the look, from 1.
    """
    if campaign.most_seeds is None or number >= LOOKS:
        return None
    more = more_seeds(verdicts, campaign, campaign.most_seeds)
    return campaign.with_seeds(more) if more else None


class Looking:
    """Looks at a comparison whenever its runs are made, and tells the store and a watcher what it adds.

    Args:
        store: what keeps the description of the comparison.
        told: the description.
        watcher: is told of added seeds if it is a :class:`GrowthWatcher`.

    Attributes:
        told: the description as it is now.
    """

    def __init__(self, store: Store, told: dict[str, Any], watcher: object) -> None:
        self.told = told
        self._store, self._watcher, self._number = store, watcher, 0

    def __call__(self, campaign: Campaign, records: Records) -> Campaign | None:
        """The larger comparison, or ``None`` when it has ended."""
        if campaign.most_seeds is None:
            return None
        self._number += 1
        verdicts = [problem.verdict for problem in summarize(described(self.told), records).problems]
        grown = after_look(campaign, verdicts, self._number)
        self.told = {**self.told, **seeds_so_far(grown or campaign, may_grow=grown is not None)}
        self._store.begin(campaign.identity, self.told)
        if grown is not None and isinstance(self._watcher, GrowthWatcher):
            self._watcher.grew(grown, _words(campaign, grown, self._number))
        return grown


def _words(before: Campaign, after: Campaign, number: int) -> str:
    """What a look added, and why."""
    added = []
    for (problem, method), count in after.more_seeds.items():
        now = before.seeds_at(problem, method)
        if count > now:
            why = "to compare with" if method == after.reference else "not settled"
            added.append(f"{method} on {problem}: {now} -> {count} seeds ({why})")
    return f"look {number} of at most {LOOKS}: {', '.join(added)}"
