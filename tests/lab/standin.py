"""The least that a report needs of the verdict, for as long as the real one is not beside it."""

import math
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any


@dataclass(frozen=True)
class Trial:
    setting: dict[str, Any]
    validation: tuple


@dataclass(frozen=True)
class Evidence:
    method: str
    trials: tuple
    finals: dict
    scores: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    method: str
    difference: float | None
    low: float | None
    high: float | None
    probability_of_improvement: float | None
    call: str
    seeds: int
    more_seeds: int | None
    warnings: tuple = ()


@dataclass(frozen=True)
class Verdict:
    problem: str
    metric: str
    higher_is_better: bool
    reference: str
    margin: float
    confidence: float
    judgements: tuple
    best: str
    warnings: tuple = ()

    def sentence(self, notes=None):
        notes = notes or {}
        said = [f"use {self.best}" + (f", {notes[self.best]}" if self.best in notes else "")]
        for one in self.judgements:
            said.append(f"{one.method} is {one.call}" + (f" and {notes[one.method]}" if one.method in notes else ""))
        return "; ".join(said)

    def to_json(self):
        return asdict(self)


def judge(problem, metric, higher_is_better, reference, evidence, margin=None, confidence=0.95, spaces=None):
    base = next(one.finals for one in evidence if one.method == reference)
    finite = [value for value in base.values() if value is not None]
    margin = (stdev(finite) if len(finite) > 1 else 0.0) if margin is None else margin
    judgements = [_judge(one, base, higher_is_better, margin) for one in evidence if one.method != reference]
    better = [one for one in judgements if one.call == "better"]
    best = max(better, key=lambda one: one.difference).method if better else reference
    return Verdict(problem, metric, higher_is_better, reference, margin, confidence, tuple(judgements), best)


def _judge(one, base, higher_is_better, margin):
    sign = 1 if higher_is_better else -1
    both = [(value, base.get(seed)) for seed, value in one.finals.items()]
    pairs = [sign * (a - b) for a, b in both if a is not None and b is not None]
    if len(pairs) < len(both) or not pairs:
        return Judgement(one.method, None, None, None, None, "worse", len(pairs), None)
    middle = fmean(pairs)
    reach = 2.5 * stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else 1.0
    low, high = middle - reach, middle + reach
    if -margin <= low and high <= margin:
        call = "equivalent"
    else:
        call = "better" if low > 0 else "worse" if high < 0 else "unsettled"
    chance = sum(pair > 0 for pair in pairs) / len(pairs)
    return Judgement(one.method, middle, low, high, chance, call, len(pairs), 12 if call == "unsettled" else None)


def expected_validation(trials, k, higher_is_better):
    sign = 1 if higher_is_better else -1
    values = sorted(sign * trial.validation[0] for trial in trials if trial.validation[0] is not None)
    n = len(values)
    return sign * sum(v * (((i + 1) / n) ** k - (i / n) ** k) for i, v in enumerate(values)) if n else None
