"""What a comparison is asked to be: checked, looked at and planned."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from polyak.lab.campaign import Campaign
from polyak.lab.check import look
from polyak.lab.clear import MOST_SEEDS
from polyak.lab.entries import Fixes, Optimizer, Spaces, entries, twins
from polyak.lab.errors import BadInput
from polyak.lab.files import stop_if_loading
from polyak.lab.places import Places, kind
from polyak.lab.problem import Problem, whole
from polyak.lab.problems import LoadedProblem, load

TRIALS, SEEDS = 10, 5
METHODS = ("adamw", "sgd", "adan", "lion", "muon", "cadamw")
HERE = Places()  # a worker for each core of this machine

Given = str | Problem | Callable[[], Problem]  # a problem, as it may be given


def plan(
    problems: Given | Sequence[Given],
    methods: Optimizer | Sequence[Optimizer],
    trials: int | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    *,
    spaces: Spaces = (),
    fixes: Fixes = (),
    reference: str | None = None,
    tuning_seed: int = 0,
    until_clear: bool = False,
    most_seeds: int | None = None,
    self_test: int | None = None,
    places: Places = HERE,
) -> Campaign:
    """Check what is asked for, look at each problem and plan.

    The arguments are those of :func:`compare`; problems are looked at on the first device of ``places``.
    """
    stop_if_loading()
    trials, seeds = _counts(trials, seeds, steps, tuning_seed)
    cap = _most_seeds(until_clear, most_seeds, seeds)
    contenders = entries(_listed(methods, "method"), spaces, fixes)
    if self_test is not None:
        contenders = twins(contenders, self_test)
    loaded = [load(each) for each in _listed(problems, "problem")]
    names = [each.problem.name for each in loaded]
    if len(set(names)) < len(names):
        raise BadInput(f"two problems have the same name: {', '.join(names)}")
    if not loaded:
        raise BadInput("name at least one problem and one method")
    asked = Campaign(
        loaded, contenders, trials, seeds, whole(steps),
        reference=reference, tuning_seed=whole(tuning_seed) or 0, most_seeds=cap,
    )  # fmt: skip
    places.check(asked)
    return asked.with_problems([_looked_at(asked, each, places.first) for each in loaded])


def _counts(trials: int | None, seeds: int | None, steps: int | None, tuning_seed: int) -> tuple[int, int]:
    """How many trials and seeds there are; refuses what cannot be."""
    for name, value in (("trials", trials), ("seeds", seeds), ("steps", steps)):
        if value is not None and (whole(value) or 0) < 1:
            raise BadInput(f"{name} must be at least 1, got {value!r}")
    first = whole(tuning_seed)
    if first is None or first < 0:
        raise BadInput(f"tuning_seed must be an integer from 0, got {tuning_seed!r}")
    return whole(trials) or TRIALS, whole(seeds) or SEEDS


def _most_seeds(until_clear: bool, most_seeds: int | None, seeds: int) -> int | None:
    """How many seeds a method may come to; None where none are added."""
    if not until_clear:
        if most_seeds is not None:
            raise BadInput(f"most_seeds, {most_seeds!r}, says how far until_clear goes; give both or leave it out")
        return None
    cap = MOST_SEEDS if most_seeds is None else whole(most_seeds)
    if cap is None or cap <= seeds:
        given = MOST_SEEDS if most_seeds is None else most_seeds
        raise BadInput(f"most_seeds must be above the number of seeds, {seeds}, got {given!r}; until_clear adds seeds")
    return cap


def _looked_at(campaign: Campaign, loaded: LoadedProblem, device: str) -> LoadedProblem:
    """A problem on a device, with what a look at it there says."""
    found = look(loaded, campaign.contenders.values(), campaign.steps, device)
    for line in found.warnings(loaded.is_here):
        warnings.warn(f"{loaded.problem.name}: {line}", stacklevel=2)
    return replace(loaded, fingerprint=found.fingerprint, seconds_per_run=found.seconds_per_run, device=kind(device))


def _listed(given: object, kind: str) -> list[Any]:
    """One or several of something as a list without repetitions."""
    several = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    for each in several:
        if not (isinstance(each, str) or callable(each) or (kind == "problem" and isinstance(each, Problem))):
            raise BadInput(f"a {kind} cannot be {each!r}")
    return [each for i, each in enumerate(several) if each not in several[:i]]
