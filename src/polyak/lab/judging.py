"""Judging one problem: which call each method gets, and why.

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
from dataclasses import replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from polyak.lab.described import CONFIDENCE, Space, check_levels
from polyak.lab.errors import BadInput, require, suggestion
from polyak.lab.evidence import Evidence, evidence_warnings
from polyak.lab.verdict import Judgement, Ranked, Verdict

if TYPE_CHECKING:
    from polyak.lab.intervals import Levels
    from polyak.lab.pairs import Pair


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
