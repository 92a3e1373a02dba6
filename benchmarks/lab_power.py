"""How often does the lab call a difference that is none, and how often does it find one that is there?

    python benchmarks/lab_power.py [--repeats 200] [--json FILE] [--quick]

Simulates comparisons: every method draws trials of its own as the lab does, tunes on noisy validation, runs its best
three trials on more tuning seeds, and runs the chosen setting on the test seeds; polyak.lab.judging judges. Nothing is
trained.
Four questions, in a few worlds that differ in how much the setting matters and in what runs on one seed share:

- A/A: one method under two names, and under six. How often is one called better or worse?
- Power: two methods, one better by two standard deviations of its seeds. How often is it called better? And where five
  such stand beside the reference, what share of them?
- Until clear: the same two, where seeds are added from 5 up to 40 after at most four looks, as `--until-clear` does.
- Intervals: how often do Student's t and BCa intervals of a mean contain it?

Prints tables, and writes JSON and the curves as a picture.
"""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _lab_power_report
import numpy as np
import scipy
from scipy import stats

from polyak.declare import Range
from polyak.lab.campaign import Campaign, reruns_for
from polyak.lab.clear import MOST_SEEDS, after_look, level
from polyak.lab.described import CONFIDENCE
from polyak.lab.entries import entries
from polyak.lab.evidence import Evidence, Trial, ranking
from polyak.lab.judging import judge
from polyak.lab.search import settings

RESULTS = Path(__file__).parent / "results"
SEEDS = (5, 6, 8, 9, 12, 20)
SEEDS_OF_SIX = (5, 8, 20)  # five times the work
TRIALS, AGAIN = 10, 3
TUNING_SEEDS = 1 + reruns_for(TRIALS)


@dataclass(frozen=True)
class World:
    """How the results of a method come about. All in units of the standard deviation that seeds give a result.

    Attributes:
        name: in the tables.
        steepness: what the farthest setting loses against the best, were the best in the middle of the space and the
            loss quadratic.
        pairing: the correlation of two runs on the same seed.
        cliff: the share of the space in which runs diverge.
        spread: the standard deviation of what settings are worth besides, normal and without bounds: more trials find
            ever better ones. The hardest case for A/A.
        dimensions: of the space, the least and the most; chance decides.
        good: the least and the largest share of the first hyperparameter's range that is good; chance decides, and
            where in the range it lies.
        cost: what the rest of it loses, times how far from the good part, in ranges.
    """

    name: str
    steepness: float
    pairing: float
    cliff: float = 0.15
    spread: float = 0.0
    dimensions: tuple[int, int] = (2, 2)
    good: tuple[float, float] = (1.0, 1.0)
    cost: float = 0.0


# In the second world six tunings of one method differ as much as tunings of SGD on digits-cnn were seen to: judged by
# whether the order intervals of 5 and of 20 seeds overlap, one is worse in some 10 % and 30 to 40 % of the cases. That
# of a good third is what most methods' learning rates look like on deep-linear and digits-cnn.
WORLDS = (
    World("any setting does", 0.0, 0.0),
    World("like digits-cnn", 2.0, 0.5),
    World("the setting matters", 5.0, 0.5),
    World("the same, with nothing in common", 5.0, 0.0),
    World("the setting decides", 50.0, 0.0),
    World("a third or more is good, the rest bad", 0.5, 0.5, 0.0, dimensions=(1, 3), good=(1 / 3, 2 / 3), cost=200.0),
    World("a sharp optimum", 0.5, 0.5, 0.0, dimensions=(1, 3), good=(0.0, 0.0), cost=100.0),
    World("there is no best setting", 0.0, 0.0, spread=1.0),
)


class Simulation:
    """One comparison: the seeds are common to its methods, the trials are each method's own."""

    def __init__(self, world: World, random: np.random.Generator, seeds: int = max(SEEDS)) -> None:
        self.world, self.random = world, random
        self.tuning = random.standard_normal(TUNING_SEEDS)
        self.test = random.standard_normal(seeds)
        self.best = random.uniform(0.2, 0.7, int(random.integers(*world.dimensions, endpoint=True)))
        self.space = {f"x{i}": Range(0.0, 1.0, log=False) for i in range(len(self.best))}
        width = random.uniform(*world.good)
        start = random.uniform(0, 1 - width)
        self.good = start, start + width

    def evidence(self, name: str, shift: float = 0.0) -> Evidence:
        """A method that is better than a plain one by ``shift``."""
        tried = settings(self.space, {}, TRIALS, int(self.random.integers(2**31)))
        places = np.array([list(setting.values()) for setting in tried])
        quality = shift + self.world.spread * self.random.standard_normal(TRIALS)
        quality -= 4 * self.world.steepness * np.square(places - self.best).mean(1)
        quality -= self.world.cost * np.abs(places[:, 0] - np.clip(places[:, 0], *self.good))
        quality[places[:, 0] > 1 - self.world.cliff] = -np.inf
        trials = [self._trial(setting, one, 1) for setting, one in zip(tried, quality, strict=True)]
        for i in np.argsort([-(t.validation[0] if t.validation[0] is not None else -np.inf) for t in trials])[:AGAIN]:
            more = self._trial(tried[i], quality[i], TUNING_SEEDS, 1)
            trials[i] = Trial(trials[i].setting, trials[i].validation + more.validation)
        chosen = next(iter(ranking(trials, True)), None)
        final = self._values(-np.inf if chosen is None else quality[chosen], self.test)
        return Evidence(name, tuple(trials), dict(enumerate(final, 1)))

    def _trial(self, setting: dict[str, Any], quality: float, until: int, since: int = 0) -> Trial:
        return Trial(setting, self._values(quality, self.tuning[since:until]))

    def _values(self, quality: float, seeds: Any) -> tuple[float | None, ...]:
        if quality == -np.inf:
            return (None,) * len(seeds)
        own = self.random.standard_normal(len(seeds))
        return tuple(map(float, quality + self.world.pairing**0.5 * seeds + (1 - self.world.pairing) ** 0.5 * own))


def first(evidence: Evidence, seeds: int) -> Evidence:
    """The same with the first seeds only."""
    return Evidence(evidence.method, evidence.trials, {s: v for s, v in evidence.finals.items() if s <= seeds})


def rates(world: World, repeats: int, names: int = 2, shift: float = 0.0, counts: Sequence[int] = SEEDS) -> list[Any]:
    """How often a method is called better or worse than the first, better, or equivalent, by number of seeds.

    ``found`` is the share of the methods that are called better.

    The repeats are the same for each number of seeds, and so are the seeds they have in common.
    """
    found = np.zeros((len(counts), 4))
    for repeat in range(repeats):
        simulation = Simulation(world, np.random.default_rng([repeat, names]), max(counts))
        methods = [simulation.evidence(f"m{i}", shift if i else 0.0) for i in range(names)]
        for row, count in enumerate(counts):
            verdict = judge("simulated", "value", True, "m0", [first(one, count) for one in methods])
            calls = [one.call for one in verdict.judgements]
            called = bool({"better", "worse"} & set(calls))
            found[row] += called, "better" in calls, "equivalent" in calls, calls.count("better") / len(calls)
    columns = ("called", "better", "equivalent", "found")
    return [
        {"seeds": count, **dict(zip(columns, map(float, row), strict=True))}
        for count, row in zip(counts, found / repeats, strict=True)
    ]


def cleared(world: World, repeats: int, shift: float = 0.0) -> dict[str, float]:
    """How often a method is called better or worse than the first where looks add seeds, and how many seeds that takes.

    The repeats are those of :func:`rates`.
    """
    names = ("sgd", "adamw")  # any two will do
    found = np.zeros(3)
    for repeat in range(repeats):
        simulation = Simulation(world, np.random.default_rng([repeat, len(names)]), MOST_SEEDS)
        methods = [simulation.evidence(name, shift if i else 0.0) for i, name in enumerate(names)]
        grown: Campaign | None = Campaign([], entries(names), TRIALS, SEEDS[0], most_seeds=MOST_SEEDS)
        look = 0
        while grown is not None:
            campaign, look = grown, look + 1
            seen = [first(one, campaign.seeds_at("simulated", one.method)) for one in methods]
            verdict = judge("simulated", "value", True, names[0], seen, confidence=level(campaign, CONFIDENCE))
            grown = after_look(campaign, [verdict], look)
        calls = {one.call for one in verdict.judgements}
        found += bool(calls & {"better", "worse"}), "better" in calls, len(seen[0].finals)
    return dict(zip(("called", "better", "seeds"), map(float, found / repeats), strict=True))


def coverage(repeats: int) -> list[dict[str, Any]]:
    """How often 95 % intervals contain the mean of the distribution that values come from."""
    draw = {
        "normal": (lambda random, size: random.standard_normal(size), 0.0),
        "skewed": (lambda random, size: random.exponential(size=size), 1.0),
        "heavy tails": (lambda random, size: random.standard_t(3, size), 0.0),
        "rounded": (lambda random, size: np.round(random.standard_normal(size)), 0.0),
    }
    rows = []
    for name, (values, mean) in draw.items():
        for count in (5, 8, 20):
            sample = values(np.random.default_rng(count), (repeats, count))
            half = stats.t.ppf(0.975, count - 1) * sample.std(1, ddof=1) / count**0.5
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of samples whose values are all equal
                found = stats.bootstrap(
                    (sample,), np.mean, axis=1, n_resamples=999, batch=50, method="BCa", random_state=0
                ).confidence_interval
            rows.append(
                {
                    "values": name,
                    "seeds": count,
                    "t": float((abs(sample.mean(1) - mean) <= half).mean()),
                    "bca": float(((found.low <= mean) & (mean <= found.high)).mean()),
                }
            )
    return rows


def main() -> None:
    """Simulate, print, write."""
    args = arguments()
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "scipy": scipy.__version__,
        "repeats": args.repeats,
        "trials": TRIALS,
        "again": AGAIN,
        "tuning_seeds": TUNING_SEEDS,
        "worlds": [],
    }
    for world in WORLDS:
        row = {
            "world": world.__dict__,
            "same": rates(world, args.repeats),
            "six": rates(world, args.repeats, names=6, counts=SEEDS_OF_SIX),
            "two": rates(world, args.repeats, shift=2.0),
            "two of six": rates(world, args.repeats, names=6, shift=2.0, counts=SEEDS_OF_SIX),
            "clear": {"same": cleared(world, args.repeats), "two": cleared(world, args.repeats, shift=2.0)},
        }
        report["worlds"].append(row)
        print(_lab_power_report.table(row), flush=True)
    report["coverage"] = coverage(args.repeats)
    print(_lab_power_report.coverage_table(report["coverage"]))
    print("\n".join(_lab_power_report.goals(report)))
    path = args.json or RESULTS / "lab_power.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".svg").write_text(_lab_power_report.picture(report))
    print(f"written to {path} and {path.with_suffix('.svg').name}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/lab_power.json")
    parser.add_argument("--quick", action="store_true", help="one repeat: a test of this script")
    args = parser.parse_args()
    if args.quick:
        args.repeats = 1
    return args


if __name__ == "__main__":
    main()
