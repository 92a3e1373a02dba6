"""Which runs a comparison consists of, and which of them are due.

For each problem and method, in this order:

1. *Trials*: one run a setting, all with the same seed, judged on the validation split. From the eleventh on, those
   that are hopeless end early, see :mod:`polyak.lab.stopping`.
2. *Re-runs*: the best three settings on further seeds, also judged on the validation split. The setting with the best
   mean over all its seeds is chosen (and the fewest diverged runs), so that one lucky run decides nothing.
3. *Seeds*: runs of the chosen setting on new seeds, judged on the test split.

The plan is a pure function of the records so far, so it does not matter in which order, by how many workers or in how
many sittings they were made.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean

from polyak.lab import search
from polyak.lab.contenders import Contender
from polyak.lab.errors import BadInput, suggestion
from polyak.lab.problems import LoadedProblem, Problem
from polyak.lab.spec import LOST, Record, Records, RunSpec
from polyak.lab.stopping import WAVE, bars

FINALISTS = 3
TRIALS_A_RERUN = 5  # one further seed for every five trials
# The seeds of a comparison: trials, then those reported, then those that re-runs use; far apart, so that none is used
# for two purposes. Another tuning seed moves them all.
RERUN_SEEDS = 10_000
SEED_STRIDE = 20_000

Place = tuple[str, str]  # the names of a problem and a method


def reruns_for(trials: int) -> int:
    """On how many further seeds the best settings run, when that is not said."""
    return trials // TRIALS_A_RERUN


class Campaign:
    """A comparison of methods on problems, with equal budgets.

    Args:
        problems: what is trained.
        contenders: the optimizers, each with a name of its own.
        trials: settings that are tried of each.
        seeds: runs of each at its chosen setting.
        steps: steps of a run, where the problem's own number is not wanted.
        reruns: further seeds for the best three settings; by default :func:`reruns_for`.
        reference: the name of the method that others are compared to; by default the first.
        tuning_seed: another one gives other trials and other seeds throughout, as if everything were done again.
        tried: the settings of the trials by method, where they are known already; by default they are searched.
        most_seeds: how many seeds a method may come to where more of them decide; by default none are added.
    """

    def __init__(
        self,
        problems: list[LoadedProblem],
        contenders: list[Contender],
        trials: int,
        seeds: int,
        steps: int | None = None,
        *,
        reruns: int | None = None,
        reference: str | None = None,
        tuning_seed: int = 0,
        tried: Mapping[str, list[search.Setting]] | None = None,
        most_seeds: int | None = None,
    ) -> None:
        self.problems, self.contenders = problems, {contender.name: contender for contender in contenders}
        self.methods = list(self.contenders)
        self.reference = self.methods[0] if reference is None else reference
        if self.reference not in self.contenders:
            known = suggestion(self.reference, self.methods)
            raise BadInput(f"the reference {self.reference!r} is none of the methods; {known}")
        self.trials, self.seeds, self.steps = trials, seeds, steps
        self._reruns, self.reruns = reruns, reruns_for(trials) if reruns is None else reruns
        self.tuning_seed, self.most_seeds = tuning_seed, most_seeds
        self.more_seeds: dict[Place, int] = {}
        self.tried = tried if tried is not None else {c.name: self._search(c) for c in contenders}
        self._trial_specs = {
            (p.reference, c.name): self._trials_of(p, c) for p in problems for c in self.contenders.values()
        }

    def with_seeds(self, seeds: Mapping[Place, int]) -> Campaign:
        """The same comparison with more seeds at some places, by the names of problem and method."""
        made = copy.copy(self)
        made.more_seeds = {**self.more_seeds, **seeds}
        return made

    def with_problems(self, problems: list[LoadedProblem]) -> Campaign:
        """The same comparison of the same problems, when more is known of them."""
        return self._again(problems, self.trials, self.seeds, self.tried)

    def with_counts(self, trials: int, seeds: int) -> Campaign:
        """The same comparison with another budget."""
        return self._again(self.problems, trials, seeds)

    def _again(
        self,
        problems: list[LoadedProblem],
        trials: int,
        seeds: int,
        tried: Mapping[str, list[search.Setting]] | None = None,
    ) -> Campaign:
        made = Campaign(
            problems, list(self.contenders.values()), trials, seeds, self.steps,
            reruns=self._reruns, reference=self.reference, tuning_seed=self.tuning_seed, tried=tried,
            most_seeds=self.most_seeds,
        )  # fmt: skip
        return made.with_seeds(self.more_seeds)

    def seeds_at(self, problem: str, method: str) -> int:
        """How many runs at the chosen setting there are for a method on a problem."""
        return self.more_seeds.get((problem, method), self.seeds)

    def test_seeds(self, problem: str, method: str) -> range:
        """The seeds of the runs at the chosen setting."""
        first = SEED_STRIDE * self.tuning_seed + 1
        return range(first, first + self.seeds_at(problem, method))

    def runs_at(self, problem: LoadedProblem, method: str) -> int:
        """How many runs there are, at most, for a method on a problem."""
        tuning = len({spec.key for spec in self.trial_specs(problem, method)})
        finalists = min(FINALISTS, tuning)
        reruns = self.reruns * finalists if finalists > 1 else 0
        return tuning + reruns + self.seeds_at(problem.problem.name, method)

    @property
    def identity(self) -> str:
        """A name that a comparison of other runs does not have."""
        keys = [spec.key for specs in self._trial_specs.values() for spec in specs]
        added = () if self.most_seeds is None else (self.most_seeds,)
        text = repr((keys, self.seeds, self.reruns, self.reference, self.tuning_seed, *added))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def total(self) -> int:
        """How many runs there are if every method finds a setting."""
        return sum(self.runs_at(problem, method) for problem in self.problems for method in self.methods)

    def steps_of(self, loaded: LoadedProblem) -> int | None:
        """The steps of a run on a problem; None where nobody knows."""
        return loaded.problem.run_steps(self.steps)

    def _search(self, contender: Contender) -> list[search.Setting]:
        seed = self.tuning_seed + contender.tuning_seed
        found = search.settings(contender.space, contender.defaults, self.trials, seed)
        return [{**contender.fixed, **setting} for setting in found]

    def _trials_of(self, loaded: LoadedProblem, contender: Contender) -> list[RunSpec]:
        seed = SEED_STRIDE * (self.tuning_seed + contender.tuning_seed)
        return [self._spec(loaded, contender.name, s, seed, "validation") for s in self.tried[contender.name]]

    def _spec(self, loaded: LoadedProblem, method: str, setting: search.Setting, seed: int, split: str) -> RunSpec:
        contender, steps = self.contenders[method], self.steps_of(loaded)
        run = (loaded.reference, loaded.problem.name, loaded.source(split), method, setting, seed, split, steps)
        return RunSpec(*run, loaded.fingerprint, contender.reference, contender.code, device=loaded.device)

    def spec_of(self, record: Record) -> RunSpec:
        """What a record of this comparison would be called now, though versions may have changed since."""
        loaded = next(p for p in self.problems if p.problem.name == record.problem)
        return self._spec(loaded, record.method, record.setting, record.seed, record.split)

    def trial_specs(self, loaded: LoadedProblem, method: str) -> list[RunSpec]:
        """The tuning runs, in the order of the trials."""
        return self._trial_specs[loaded.reference, method]

    def finalists(self, loaded: LoadedProblem, method: str, records: Records) -> list[RunSpec]:
        """The best trials, the best one first; none while trials are missing or when none has a figure."""
        specs = self.trial_specs(loaded, method)
        if any(spec.key not in records for spec in specs):
            return []
        scored = {spec.key: spec for spec in specs if _has_figure(records[spec.key])}
        return sorted(scored.values(), key=lambda s: _rank(loaded.problem, records[s.key]))[:FINALISTS]

    def rerun_specs(self, loaded: LoadedProblem, method: str, finalist: RunSpec) -> list[RunSpec]:
        """The runs of one of the best settings on further seeds."""
        first = finalist.seed + RERUN_SEEDS
        seeds = range(first + 1, first + 1 + self.reruns)
        return [self._spec(loaded, method, finalist.setting, seed, "validation") for seed in seeds]

    def best_trial(self, loaded: LoadedProblem, method: str, records: Records) -> RunSpec | None:
        """The trial whose setting is chosen; ``None`` while runs are missing or when no trial has a figure."""
        finalists = self.finalists(loaded, method, records)
        if len(finalists) < 2:
            return finalists[0] if finalists else None
        again = {spec.key: self.rerun_specs(loaded, method, spec) for spec in finalists}
        if any(spec.key not in records for specs in again.values() for spec in specs):
            return None
        return min(finalists, key=lambda s: _mean(loaded.problem, [records[r.key] for r in (s, *again[s.key])]))

    def final_specs(self, loaded: LoadedProblem, method: str, records: Records) -> list[RunSpec]:
        """The runs at the chosen setting; none until it is known."""
        best = self.best_trial(loaded, method, records)
        if best is None:
            return []
        seeds = self.test_seeds(loaded.problem.name, method)
        return [self._spec(loaded, method, best.setting, seed, "test") for seed in seeds]

    def due(self, records: Records) -> list[RunSpec]:
        """The runs that can be made now: first trial by trial over all methods, then re-runs, then the seeds."""
        trials: list[tuple[int, RunSpec]] = []
        reruns: list[tuple[int, RunSpec]] = []
        finals: list[tuple[int, RunSpec]] = []
        for loaded in self.problems:
            for method in self.methods:
                trials += enumerate(self._startable_trials(loaded, method, records))
                finalists = self.finalists(loaded, method, records)
                for finalist in finalists if len(finalists) > 1 else []:
                    reruns += enumerate(self.rerun_specs(loaded, method, finalist))
                finals += enumerate(self.final_specs(loaded, method, records))
        ordered = [pair[1] for phase in (trials, reruns, finals) for pair in sorted(phase, key=lambda pair: pair[0])]
        missing: dict[str, RunSpec] = {}
        for spec in ordered:  # of equal runs (few choices repeat themselves) the first, which has the fewest bars
            if spec.key not in records:
                missing.setdefault(spec.key, spec)
        return list(missing.values())

    def _startable_trials(self, loaded: LoadedProblem, method: str, records: Records) -> list[RunSpec]:
        """The trials whose bars are known: those of a ten, when all before it have ended."""
        specs = self.trial_specs(loaded, method)
        startable = specs[:WAVE]
        for begin in range(WAVE, len(specs), WAVE):
            if any(spec.key not in records for spec in specs[:begin]):
                break
            earlier = [records[spec.key] for spec in specs[:begin]]
            barred = bars(loaded.problem, self.steps_of(loaded), earlier)
            startable += [replace(spec, bars=barred) for spec in specs[begin : begin + WAVE]]
        return startable


def _has_figure(record: Record) -> bool:
    return record.metric is not None and record.status == "finished"


def _mean(problem: Problem, records: list[Record]) -> tuple[float, float]:
    """Sorts the best first: by the share of diverged runs, then by the mean metric. A failed run says nothing."""
    judged = [record for record in records if record.status not in LOST]
    found = [_badness(problem, record.metric) for record in judged if _has_figure(record)]
    return 1 - len(found) / len(judged), fmean(found)


def _badness(problem: Problem, metric: float | None) -> float:
    if metric is None:
        return math.inf
    return -metric if problem.higher_is_better else metric


def _rank(problem: Problem, record: Record) -> tuple[float, float, float]:
    """Sorts the best first: by metric; of equals, whichever met the target sooner, then has the lower training loss."""
    detail = record.detail
    losses = [loss for _, loss in detail.get("train", []) if loss is not None]
    met = detail.get("target_step")  # an untrained model may meet it at step 0
    return _badness(problem, record.metric), math.inf if met is None else met, losses[-1] if losses else math.inf
