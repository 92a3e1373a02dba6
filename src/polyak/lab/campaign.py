"""Which runs a comparison consists of, and which of them are due.

A comparison has two phases for each problem and method: the trials, all with the same seed and judged on the
validation split, and, when every trial has ended, one run for each seed at the best setting, judged on the test split.
The plan is a pure function of the records so far, so it does not matter in which order, by how many workers or in how
many sittings they were made.
"""

from __future__ import annotations

from polyak import optim
from polyak.lab import search
from polyak.lab.problems import LoadedProblem, Problem
from polyak.lab.spec import Record, Records, RunSpec

TUNING_SEED = 0  # the reported seeds are 1, 2, ...: none of them took part in the choice of the setting


class Campaign:
    """A comparison of methods on problems, with equal budgets."""

    def __init__(
        self, problems: list[LoadedProblem], methods: list[str], trials: int, seeds: int, steps: int | None = None
    ) -> None:
        self.problems, self.methods = problems, methods
        self.trials, self.seeds, self.steps = trials, seeds, steps
        self.settings = {method: search.settings(optim.get(method), trials) for method in methods}
        self._trial_specs = {
            (p.reference, m): [self._spec(p, m, s, TUNING_SEED, "validation") for s in self.settings[m]]
            for p in problems
            for m in methods
        }

    @property
    def total(self) -> int:
        """How many runs there are if every method finds a setting."""
        tuning = sum(len({spec.key for spec in specs}) for specs in self._trial_specs.values())
        return tuning + len(self._trial_specs) * self.seeds

    def _spec(self, loaded: LoadedProblem, method: str, setting: search.Setting, seed: int, split: str) -> RunSpec:
        steps, source = loaded.problem.run_steps(self.steps), loaded.source(split)
        names = (loaded.reference, loaded.problem.name)
        return RunSpec(*names, source, method, setting, seed, split, steps, loaded.fingerprint)

    def trial_specs(self, loaded: LoadedProblem, method: str) -> list[RunSpec]:
        """The tuning runs, in the order of the trials."""
        return self._trial_specs[loaded.reference, method]

    def best_trial(self, loaded: LoadedProblem, method: str, records: Records) -> RunSpec | None:
        """The trial to report, or ``None`` while trials are missing or when none has a figure."""
        specs = self.trial_specs(loaded, method)
        if any(spec.key not in records for spec in specs):
            return None
        scored = [(spec, records[spec.key]) for spec in specs if records[spec.key].metric is not None]
        return min(scored, key=lambda pair: _rank(loaded.problem, pair[1]))[0] if scored else None

    def final_specs(self, loaded: LoadedProblem, method: str, records: Records) -> list[RunSpec]:
        """The runs at the best setting; none until it is known."""
        best = self.best_trial(loaded, method, records)
        if best is None:
            return []
        return [self._spec(loaded, method, best.setting, seed, "test") for seed in range(1, self.seeds + 1)]

    def due(self, records: Records) -> list[RunSpec]:
        """The runs that can be made now: first trial by trial over all methods, then the seeds."""
        trials: list[tuple[int, RunSpec]] = []
        finals: list[tuple[int, RunSpec]] = []
        for loaded in self.problems:
            for method in self.methods:
                trials += enumerate(self.trial_specs(loaded, method))
                finals += enumerate(self.final_specs(loaded, method, records))
        ordered = sorted(trials, key=lambda pair: pair[0]) + sorted(finals, key=lambda pair: pair[0])
        return list({spec.key: spec for _, spec in ordered if spec.key not in records}.values())


def _rank(problem: Problem, record: Record) -> tuple[float, float, float]:
    """Sorts the best first: by metric; of equals, whichever met the target sooner, then has the lower training loss."""
    assert record.metric is not None
    detail = record.detail
    target_step = detail["target_step"] or float("inf")
    loss = detail["train"][-1][1] if detail["train"] else None
    badness = -record.metric if problem.higher_is_better else record.metric
    return badness, target_step, float("inf") if loss is None else loss
