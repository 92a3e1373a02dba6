"""How far the choice of the setting was luck: the spread over other tunings that could have been made.

Another tuning would have drawn other trials and other tuning seeds, and would have ended at another setting. The
spread of what it ends at is estimated from the trials that were made:

1. *Other trials*: halves of the trials, as in the delete-half jackknife, which is right for statistics that are not
   smooth, such as a best of many, where the bootstrap and the delete-one jackknife are not (Shao and Wu 1989). No half
   has to be drawn: the chance that the trial at rank r is the best of a half is a ratio of binomials.
2. *Other seeds*: the tuning seeds are drawn with replacement and the trials ranked by those.
3. *Noise is no quality*: trials that are all equally good differ too, by the noise of their seeds. A share of what
   noise alone would give is taken off. Not all of it: the noise is known from few runs, and a spread estimated as
   nothing is worse than one estimated too large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from polyak.lab.evidence import Trial, goodness

Array = NDArray[np.float64]

DRAWS = 64  # of the tuning seeds
TUNINGS = 400  # simulated ones that say what noise alone gives
# These two were chosen by simulations like those of benchmarks/lab_power.py, with one to four hyperparameters and three
# and five tuning seeds: the most power of those that call at most 5 % of A/A comparisons wherever the space has a best
# setting. A larger share or more degrees find more where the setting hardly matters, and call too much where it does.
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
    values = [[goodness(value, higher_is_better) for value in trial.validation] for trial in trials]
    values = [row for row in values if row and all(map(math.isfinite, row))]
    if len(values) < 2:
        return 0.0
    seeds = max(map(len, values))
    again = np.array([row for row in values if len(row) == seeds])
    once = np.array([row[0] for row in values if len(row) < seeds])
    if min(again.shape) > 1:
        residuals = again - again.mean(0) - again.mean(1, keepdims=True) + again.mean()
        noise = math.sqrt(float(np.square(residuals).sum()) / ((len(again) - 1) * (seeds - 1)))
    spread = _spread(again[None], once[None], len(trials))[0]
    floor = NOISE_SHARE * _flat(len(trials), len(again), len(once), seeds) * noise**2
    return math.sqrt(max(0.0, float(spread) - floor))


def _spread(again: Array, once: Array, trials: int) -> Array:
    """The variance of the chosen trial's quality over halves of the trials and draws of the tuning seeds.

    Args:
        again: values of the trials that ran on all tuning seeds, (tunings, trials, seeds).
        once: values of the others on the first seed, (tunings, trials).
        trials: how many there were, those that diverged included.
    """
    seeds = again.shape[2]
    means = again.mean(2)
    # The others are set beside the means as they stood beside the same trials on the first seed.
    beside = once + (means.mean(1) - again[:, :, 0].mean(1))[:, None]
    quality = np.concatenate([means, beside], 1)
    drawn = np.random.default_rng(0).integers(seeds, size=(DRAWS if seeds > 1 else 1, seeds))
    seen = again[:, :, drawn].mean(3).transpose(2, 0, 1)  # draws, tunings, trials
    seen = np.concatenate([seen, np.broadcast_to(beside, (len(drawn), *beside.shape))], 2)
    ranked = np.take_along_axis(np.broadcast_to(quality, seen.shape), np.argsort(-seen, 2), 2)
    chance = _chance_of_best(trials)[: quality.shape[1]]
    chance = chance / chance.sum()
    mean = (ranked @ chance).mean(0)
    spread: Array = (np.square(ranked - mean[None, :, None]) @ chance).mean(0)
    return spread


def _chance_of_best(trials: int) -> Array:
    """The chance that the trial of each rank is the best of a half of them, drawn without replacement."""
    half = max(1, trials // 2)
    return np.array([math.comb(trials - rank, half - 1) / math.comb(trials, half) for rank in range(1, trials + 1)])


@lru_cache(maxsize=256)
def _flat(trials: int, again: int, once: int, seeds: int) -> float:
    """The spread that trials of one and the same quality show, for noise of standard deviation 1."""
    random = np.random.default_rng(0)
    first = -np.sort(-random.standard_normal((TUNINGS, again + once)), 1)
    more = random.standard_normal((TUNINGS, again, seeds - 1))
    return float(_spread(np.concatenate([first[:, :again, None], more], 2), first[:, again:], trials).mean())
