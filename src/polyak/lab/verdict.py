"""The verdict on one problem: each method is better than the reference, worse, equivalent, or not settled.

:func:`polyak.lab.judging.judge` makes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polyak.lab.evidence import Call


@dataclass(frozen=True)
class Judgement:
    """One method against the reference. ``None`` stands for what is unknown or infinite.

    Attributes:
        method: its name.
        difference: the mean difference of the test metric, positive where the method is better; with diverged runs the
            median.
        low: lower end of the interval, at the level that the call was made at; of none, the wider one.
        high: upper end.
        probability_of_improvement: the share of seeds on which the method is better; equal results count half.
        call: "better", "worse", "equivalent" or "unsettled".
        seeds: the number of seeds that both have.
        more_seeds: about how many more would settle it; ``None`` where it is settled or where seeds cannot settle it.
        warnings: what to know before trusting the call.
    """

    method: str
    difference: float | None
    low: float | None
    high: float | None
    probability_of_improvement: float | None
    call: Call
    seeds: int
    more_seeds: int | None
    warnings: tuple[str, ...] = ()

    @property
    def to_settle(self) -> str:
        """How many more seeds would settle it, in words; empty where none would."""
        return f"about {self.more_seeds} more seed{'s' if self.more_seeds > 1 else ''}" if self.more_seeds else ""


@dataclass(frozen=True)
class Ranked:
    """A method among others, without a comparison.

    Attributes:
        method: its name.
        mean: its mean test metric over the runs that did not diverge.
        seeds: how many these are.
        diverged: how many did.
    """

    method: str
    mean: float
    seeds: int
    diverged: int

    @property
    def words(self) -> str:
        """The mean, and on how many seeds where that is not all."""
        return f"{self.mean:.3g}" + (f" ({self.seeds} of {self.seeds + self.diverged} seeds)" if self.diverged else "")


@dataclass(frozen=True)
class Verdict:
    """All methods against the reference.

    Attributes:
        problem: its name.
        metric: the metric's name.
        higher_is_better: whether more of it is better.
        reference: the method that all others are compared with.
        reference_value: its mean test metric over the runs that did not diverge; ``None`` if all did.
        margin: differences up to here do not matter.
        confidence: of all calls of a difference together, and of all calls of equivalence.
        judgements: one for each method but the reference, in the order they came.
        warnings: what to know of the reference.
        ranking: where the reference came to no result, the other methods that have one, the best first: by the share of
            seeds that did not diverge, then by the mean of these.
    """

    problem: str
    metric: str
    higher_is_better: bool
    reference: str
    reference_value: float | None
    margin: float
    confidence: float
    judgements: tuple[Judgement, ...]
    warnings: tuple[str, ...] = ()
    ranking: tuple[Ranked, ...] = ()

    @property
    def best(self) -> str | None:
        """The method to use: the one with the largest difference of those called better, else the reference."""
        if self.reference_value is None:
            return self.ranking[0].method if self.ranking else None
        better = [one for one in self.judgements if one.call == "better"]
        if better:  # of infinite differences, which only diverged runs of the reference make, the first
            return max(better, key=lambda one: math.inf if one.difference is None else one.difference).method
        return self.reference

    @property
    def different(self) -> tuple[Judgement, ...]:
        """Those called better or worse."""
        return tuple(one for one in self.judgements if one.call in ("better", "worse"))

    def self_test(self) -> str:
        """The verdict in one sentence where all methods are one: whether a difference was found that is none."""
        begin = f"self-test: {len(self.judgements) + 1} names of one method; "
        if self.best is None:
            return f"{begin}nothing can be said: {self.reference} has no test result on {self.problem}"
        if not self.different:
            return f"{begin}called different: none, as it should be"
        found = "; ".join(map(self._clause, self.different))
        return f"{begin}called different: {found}, which is false"

    def sentence(self, notes: Mapping[str, str] | None = None) -> str:
        """The verdict in one sentence.

        Args:
            notes: words to add to a method, such as its setting or the time of a step.
        """
        notes = notes or {}
        if self.reference_value is None:
            return self._without_reference(notes)
        assert self.best is not None
        note = notes.get(self.best)
        parts = [f"use {self.best}" + (f", {note}" if note else "")]
        for call in ("better", "equivalent", "worse", "unsettled"):
            group = [one for one in self.judgements if one.call == call]
            own = [one for one in group if one.method == self.best]
            others = [one for one in group if one.method != self.best]
            parts += [self._clause(one) for one in own]
            if len(others) == 1:
                added = notes.get(others[0].method)
                parts.append(self._clause(others[0]) + (f" and {added}" if added else ""))
            elif others:
                parts.append(self._group(call, others, notes))
        return "; ".join(parts)

    def _without_reference(self, notes: Mapping[str, str]) -> str:
        """A plain ranking, where there is nothing that the methods could be compared with."""
        if not self.ranking:
            return f"no method can be recommended: none has a test result on {self.problem}"
        best, *others = self.ranking
        note = f", {notes[best.method]}," if best.method in notes else ""
        said = f"the reference {self.reference} came to no result; "
        said += f"{'of the others ' if others else ''}{best.method}{note} has "
        said += f"{'the best' if others else 'a'} mean test {self.metric} of {best.words}"
        if others:
            said += f", then come {', '.join(f'{each.method} {each.words}' for each in others)}"
        return f"{said} (a ranking, no comparison: name another reference for that)"

    def _group(self, call: str, group: Sequence[Judgement], notes: Mapping[str, str]) -> str:
        """Several methods with the same call: their names, and what is to be known of each."""
        words = {"equivalent": f"equivalent within {self.margin:.3g}", "unsettled": "not settled"}
        names = []
        for one in group:
            about = ", ".join(filter(None, (one.to_settle, notes.get(one.method))))
            names.append(f"{one.method} ({about})" if about else one.method)
        return f"{words.get(call, f'{call} than {self.reference}')}: {', '.join(names)}"

    def _clause(self, one: Judgement) -> str:
        if one.call == "equivalent":
            return f"{one.method} is equivalent within {self.margin:.3g}"
        if one.call == "unsettled":
            about = f"{one.to_settle} would" if one.to_settle else "more seeds would not"
            return f"{one.method} is not settled ({about} settle it)"
        size = "" if one.difference is None else f" by {abs(one.difference):.3g}"
        if one.low is not None and one.high is not None:
            ends = sorted((abs(one.low), abs(one.high)))
            size += f" ({ends[0]:.3g} to {ends[1]:.3g})"
        return f"{one.method} is {one.call} than {self.reference}{size}"

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON-able data, without NaN and infinities."""
        return asdict(self)
