"""Which trials are hopeless: successive halving that does not depend on when runs end.

At each rung, a share of the steps, a trial goes on only if its best validation metric so far is in the better half of
what trials of the same method had there. Which ones count is a matter of their numbers, not of the clock: whole tens of
trials before it. So the first ten are never stopped, a larger budget repeats nothing, and the same trials are stopped
by one worker and by twenty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from polyak.lab.problem import Problem
from polyak.lab.spec import Bars, Record, RunSpec
from polyak.lab.statistics import median

WAVE = 10
RUNGS = (0.25, 0.5)
ENOUGH = 5  # trials that came to a rung, before it stops any

Curve = Iterable[Sequence[float | None]]  # steps, each with the validation metric there


def bars(problem: Problem, steps: int | None, earlier: Sequence[Record]) -> Bars:
    """For each rung its step and the metric that a trial must hold there; none where the steps are not known."""
    found: list[tuple[int, float]] = []
    if steps is None:
        return ()
    for rung in (math.ceil(share * steps) for share in RUNGS):
        curves = [record.detail.get("validation", []) for record in earlier]
        there = [best for curve in curves if (best := _best_at(problem, curve, rung, steps)) is not None]
        if len(there) >= ENOUGH:
            found.append((rung, median(there)))
    return tuple(found)


def hopeless(problem: Problem, steps: int | None, barred: Bars, curve: Sequence[Sequence[float | None]]) -> bool:
    """Whether a run with this validation curve so far has missed a bar."""
    for rung, bar in barred:
        best = _best_at(problem, curve, rung, steps)
        if best is not None and problem.better(bar, best):
            return True
    return False


def answers(problem: Problem, spec: RunSpec, record: Record) -> bool:
    """Whether a stored run is what a spec asks for: one that was stopped only where the spec's own bars stop it too."""
    curve = record.detail.get("validation", [])
    return record.status != "stopped" or hopeless(problem, spec.steps, spec.bars, curve)


def _best_at(problem: Problem, curve: Curve, rung: int, steps: int | None) -> float | None:
    """The best up to the first report at or behind a rung; None if the run has not come so far, or is at its end."""
    best: float | None = None
    for step, metric in curve:
        if metric is not None and math.isfinite(metric) and (best is None or problem.better(metric, best)):
            best = metric
        if step is not None and step >= rung:
            return best if steps is None or step < steps else None
    return None
