"""How far the choice of the setting was luck: the spread over other tunings that could have been made.

Another tuning with the same budget would have tried other points of the same range, on other tuning seeds, and would
have ended at another setting. The spread of what it ends at is estimated from the trials that were made:

1. *Other trials*: halves of the trials. The best of a half varies as the best of all does from one set of trials to
   another, also where a statistic is not smooth, so that the bootstrap fails (the delete-half jackknife of Shao and Wu
   1989). But the trials are no independent draws: polyak.lab.search spreads them evenly over the range of every
   hyperparameter, and no other such set misses a third of the range. So only those halves count that are spread evenly
   too, as the balanced half-samples of stratified surveys are (McCarthy 1966). A half has wider gaps than the whole: a
   sharp optimum looks more uncertain than it is, not less.
2. *Other seeds*: the tuning seeds are drawn with replacement and the trials ranked by those.
3. *Noise is no quality*: trials that are all equally good differ too, by the noise of their seeds. A share of what
   noise alone would give is taken off. Not all of it: the noise is known from few runs, and a spread estimated as
   nothing is worse than one estimated too large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyak.lab.evidence import Trial, goodness
from polyak.lab.values import is_number

Array = NDArray[np.float64]
Halves = NDArray[np.bool_]
Order = NDArray[np.intp]

DRAWS = 64  # of the tuning seeds
TUNINGS = 400  # simulated ones that say what noise alone gives
HALVES = 1024  # looked at; from thirteen trials on there are more
EVENEST = 10  # of so many halves one counts, the most evenly spread
FEWEST = 24  # that count, where there are as many: from seven trials on
# These two were chosen by simulations like those of benchmarks/lab_power.py: a larger share or more degrees find more
# where the setting hardly matters, and call too many A/A comparisons where it does.
NOISE_SHARE = 0.5
DEGREES = 6.0
"""Degrees of freedom of the spread, for Student's t: it hangs on the distances between the few best trials."""


def tuning_error(trials: Sequence[Trial], higher_is_better: bool, noise: float) -> float:
    """The standard deviation of what other tunings would have ended at, in units of the metric.

    Args:
        trials: the tuning runs.
        higher_is_better: whether the best is the largest.
        noise: the standard deviation that a seed makes, used where no two trials ran on two seeds.
    """
    rows = [[goodness(value, higher_is_better) for value in trial.validation] for trial in trials]
    finished = [i for i, row in enumerate(rows) if row and all(map(math.isfinite, row))]
    if len(finished) < 2:
        return 0.0
    seeds = max(len(rows[i]) for i in finished)
    finished.sort(key=lambda i: -len(rows[i]))
    again = np.array([rows[i] for i in finished if len(rows[i]) == seeds])
    once = np.array([rows[i][0] for i in finished if len(rows[i]) < seeds])
    if min(again.shape) > 1:
        residuals = again - again.mean(0) - again.mean(1, keepdims=True) + again.mean()
        noise = math.sqrt(float(np.square(residuals).sum()) / ((len(again) - 1) * (seeds - 1)))
    halves = _even_halves(trials)[:, finished]

    def chance(order: Order) -> Array:
        ranked = halves[:, order]
        best = ranked & (ranked.cumsum(-1) == 1)
        share: Array = best.mean(0)
        return share

    spread = _spread(again[None], once[None], chance)[0]
    floor = NOISE_SHARE * _flat(len(trials), len(again), len(once), seeds) * noise**2
    return math.sqrt(max(0.0, float(spread) - floor))


def _even_halves(trials: Sequence[Trial]) -> Halves:
    """The halves that are spread like the whole, (halves, trials).

    How far a half is from that is the energy distance of the two along each hyperparameter, added up. The trials' order
    along it is all that counts, so ranges need not be known, nor which are logarithmic.
    """
    halves = _halves(len(trials))
    apart = np.zeros((len(trials), len(trials)))
    for name in trials[0].setting:
        apart += _apart([trial.setting.get(name) for trial in trials])
    weights = halves / halves.sum(1, keepdims=True) - 1 / len(trials)
    uneven = -np.einsum("hi,ij,hj->h", weights, apart, weights)
    # Equal ones all count, or the order of the trials would decide which do.
    count = min(max(FEWEST, len(halves) // EVENEST), len(halves))
    kept: Halves = halves[uneven <= np.sort(uneven)[count - 1] + 1e-9]
    return kept


def _apart(values: Sequence[Any]) -> Array:
    """How far each two values of one hyperparameter are apart, at most 1: by rank, or whether choices differ."""
    if not all(map(is_number, values)):
        return np.array([[float(one != other) for other in values] for one in values])
    below = np.less.outer(values, values)  # [i, j]: i lies below j
    rank = (below.sum(0) - below.sum(1)) / (2 * len(values))  # of equal ones the mean
    distance: Array = np.abs(np.subtract.outer(rank, rank))
    return distance


@lru_cache(maxsize=64)
def _halves(trials: int) -> Halves:
    """All halves of so many trials, or some."""
    half = max(1, trials // 2)
    if math.comb(trials, half) <= HALVES:
        chosen = np.array(list(combinations(range(trials), half)))
    else:
        chosen = np.random.default_rng(0).permuted(np.tile(np.arange(trials), (HALVES, 1)), axis=1)[:, :half]
    halves = np.zeros((len(chosen), trials), bool)
    np.put_along_axis(halves, chosen, True, axis=1)
    return halves


def _chance_of_best(trials: int) -> Array:
    """The chance that the trial of each rank is the best of a half of them, over all halves."""
    half = max(1, trials // 2)
    return np.array([math.comb(trials - rank, half - 1) / math.comb(trials, half) for rank in range(1, trials + 1)])


def _spread(again: Array, once: Array, chance: Callable[[Order], Array]) -> Array:
    """The variance of the chosen trial's quality over halves of the trials and draws of the tuning seeds.

    Args:
        again: values of the trials that ran on all tuning seeds, (tunings, trials, seeds).
        once: values of the others on the first seed, (tunings, trials).
        chance: from trials in the order of a draw, the best first, how likely each is the best of a half.
    """
    seeds = again.shape[2]
    means = again.mean(2)
    # The others are set beside the means as they stood beside the same trials on the first seed.
    beside = once + (means.mean(1) - again[:, :, 0].mean(1))[:, None]
    quality = np.concatenate([means, beside], 1)
    drawn = np.random.default_rng(0).integers(seeds, size=(DRAWS if seeds > 1 else 1, seeds))
    seen = again[:, :, drawn].mean(3).transpose(2, 0, 1)  # draws, tunings, trials
    seen = np.concatenate([seen, np.broadcast_to(beside, (len(drawn), *beside.shape))], 2)
    order = np.argsort(-seen, 2)
    ranked = np.take_along_axis(np.broadcast_to(quality, seen.shape), order, 2)
    weights = chance(order)
    weights = weights / weights.sum(-1, keepdims=True)  # of the other halves all trials diverged
    mean = (ranked * weights).sum(2).mean(0)
    spread: Array = (np.square(ranked - mean[None, :, None]) * weights).sum(2).mean(0)
    return spread


@lru_cache(maxsize=256)
def _flat(trials: int, again: int, once: int, seeds: int) -> float:
    """The spread that trials of one and the same quality show, for noise of standard deviation 1.

    No place is better than another then, and halves of any kind do.
    """
    random = np.random.default_rng(0)
    first = -np.sort(-random.standard_normal((TUNINGS, again + once)), 1)
    more = random.standard_normal((TUNINGS, again, seeds - 1))
    chance = _chance_of_best(trials)[: again + once]
    return float(_spread(np.concatenate([first[:, :again, None], more], 2), first[:, again:], lambda _: chance).mean())
