"""The verdict on one problem: each method is better than the reference, worse, equivalent, or not settled.

A call follows from the interval of the difference, at the level that Holm's rule gives the method, once for differences
and once for equivalence:

- the whole interval within ``[-margin, margin]``: *equivalent*, even where it leaves out 0. A difference that is
  certain but smaller than what matters is no reason to change;
- else the interval leaves out 0: *better* or *worse*;
- else *unsettled*, with how many seeds more would settle it.

With ``alpha`` for 1 - confidence, the chance that any "better" or "worse" is false is at most ``alpha``, and the chance
that any "equivalent" is false at most ``alpha / 2``, since only one end of an interval can be to blame.

Where no margin is set it is the standard deviation that seeds give the reference: if two methods with independent
normal runs differ by less, the better one wins on fewer than 76 % of the seeds, about where Bouthillier et al. (2021)
put the least difference that matters. It is estimated, so who knows what matters should set it. A margin of 0 leaves
only "better", "worse" and "unsettled", but for runs that are equal to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from polyak.lab.described import CONFIDENCE, Space, check_levels
from polyak.lab.errors import BadInput, require, suggestion
from polyak.lab.evidence import Call, Evidence, Trial, evidence_warnings, expected_validation

if TYPE_CHECKING:
    from polyak.lab.intervals import Levels
    from polyak.lab.pairs import Pair

__all__ = ["Call", "Evidence", "Judgement", "Ranked", "Trial", "Verdict", "expected_validation", "judge"]


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


def judge(
    problem: str,
    metric: str,
    higher_is_better: bool,
    reference: str,
    evidence: Sequence[Evidence],
    margin: float | None = None,
    confidence: float = CONFIDENCE,
    spaces: Mapping[str, Space] | None = None,
) -> Verdict:
    """Compare every method with the reference.

    Args:
        problem: its name.
        metric: the metric's name.
        higher_is_better: whether more of it is better.
        reference: the method that all others are compared with.
        evidence: the runs of every method, the reference among them.
        margin: differences up to here do not matter; ``None`` for the standard deviation of the reference's seeds.
        confidence: the chance that no "better" or "worse" is false, and at least that of no false "equivalent". Who
            looks several times while seeds are added must share what is left to 1 among the looks.
        spaces: by method, the ranges that were tuned, for warnings.

    Raises:
        BadInput: an unknown reference, a method that comes twice, or a margin or confidence that cannot be.
    """
    _check(evidence, reference, margin, confidence)
    require("scipy")
    from polyak.lab.pairs import pair  # needs SciPy, which reading a verdict does not

    spaces = spaces or {}
    base = next(one for one in evidence if one.method == reference)
    others = [one for one in evidence if one.method != reference]
    finite = [float(value) for value in base.finals.values() if value is not None and math.isfinite(value)]
    if margin is None:
        margin = stdev(finite) if len(finite) > 1 else 0.0
    pairs = {one.method: pair(one, base, higher_is_better) for one in others}
    levels = _levels(pairs, margin, 1 - confidence)
    failed = base.failure is not None
    judgements = []
    for one in others:
        warnings = evidence_warnings(one, higher_is_better, spaces.get(one.method, {}))
        found = _judgement(one.method, pairs[one.method], levels[one.method], margin, warnings)
        # Seeds are no help to a method that has no setting to run.
        judgements.append(replace(found, more_seeds=None) if failed or one.failure is not None else found)
    return Verdict(
        problem=problem,
        metric=metric,
        higher_is_better=higher_is_better,
        reference=reference,
        reference_value=fmean(finite) if finite else None,
        margin=float(margin),
        confidence=confidence,
        judgements=tuple(judgements),
        warnings=tuple(evidence_warnings(base, higher_is_better, spaces.get(reference, {}))),
        ranking=() if finite else _ranking(others, higher_is_better),
    )


def _ranking(methods: Sequence[Evidence], higher_is_better: bool) -> tuple[Ranked, ...]:
    """The methods with a result, the best first."""
    found = []
    for one in methods:
        finite = [float(value) for value in one.finals.values() if value is not None and math.isfinite(value)]
        if finite:
            found.append(Ranked(one.method, fmean(finite), len(finite), len(one.finals) - len(finite)))
    sign = -1 if higher_is_better else 1
    return tuple(sorted(found, key=lambda one: (one.diverged / (one.seeds + one.diverged), sign * one.mean)))


def _check(evidence: Sequence[Evidence], reference: str, margin: float | None, confidence: float) -> None:
    names = [one.method for one in evidence]
    if reference not in names:
        raise BadInput(f"the reference {reference!r} is not among the methods; {suggestion(reference, names)}")
    if len(set(names)) < len(names):
        raise BadInput(f"a method comes twice: {', '.join(names)}")
    check_levels(margin, confidence)


def _levels(pairs: Mapping[str, Pair], margin: float, alpha: float) -> dict[str, Levels]:
    """By Holm's rule for the differences, and again for the equivalences."""
    from polyak.lab.intervals import Levels  # needs SciPy

    differences = holm({name: found.comparison.p_value() for name, found in pairs.items()}, alpha)
    equivalences = holm({name: found.comparison.p_equivalence(margin) for name, found in pairs.items()}, alpha)
    return {name: Levels(differences[name], equivalences[name]) for name in pairs}


def _judgement(name: str, found: Pair, levels: Levels, margin: float, warnings: list[str]) -> Judgement:
    comparison = found.comparison
    call, level = comparison.decide(levels, margin)
    more = comparison.more_seeds(levels, margin) if call == "unsettled" else None
    low, high = comparison.interval(level) or (None, None)
    return Judgement(
        method=name,
        difference=comparison.difference,
        low=low,
        high=high,
        probability_of_improvement=found.probability_of_improvement,
        call=call,
        seeds=len(found.method),
        more_seeds=more,
        warnings=(*warnings, *found.warnings),
    )


def holm(p_values: Mapping[str, float], alpha: float) -> dict[str, float]:
    """The level of each method's test, by Holm's rule.

    The smallest p value is held against ``alpha`` over the number of methods, the next against ``alpha`` over one less,
    and so on; from the first that fails on, all have that one's level. An interval at its own method's level excludes
    0, or lies within the margin, exactly if Holm's test says so: calls and intervals cannot contradict each other. The
    chance of any false rejection among all methods is at most ``alpha``.
    """
    levels: dict[str, float] = {}
    level, failed = 0.0, False
    for rank, (method, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if not failed:
            level = alpha / (len(p_values) - rank)
            failed = p > level
        levels[method] = level
    return levels
