"""Runs that are made in this process, as a problem needs that no other process knows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

import torch

from polyak.lab.loops import Outcome
from polyak.lab.pool import Told
from polyak.lab.problem import Problem
from polyak.lab.seeding import seeded
from polyak.lab.spec import RunSpec
from polyak.lab.train import make


class Here:
    """Makes one run at a time, on one thread as a worker does; to :func:`polyak.lab.runner.make_runs` it is a pool.

    Args:
        problems: the problems by their references.
        told: is told how far the runs are.
    """

    def __init__(self, problems: Mapping[str, Problem], told: Told) -> None:
        self._problems, self._told = problems, told
        self._spec: RunSpec | None = None
        self._threads = torch.get_num_threads()

    def __enter__(self) -> Here:
        import torch._dynamo  # torch's first optimizer imports it; no method is to be charged with those seconds

        torch.set_num_threads(1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        torch.set_num_threads(self._threads)

    @property
    def keys(self) -> set[str]:
        """The run under way."""
        return {self._spec.key} if self._spec else set()

    @property
    def full(self) -> bool:
        """Whether there is a run under way."""
        return self._spec is not None

    def begin(self, spec: RunSpec) -> None:
        """Take a run, to make it when its end is asked for."""
        self._spec = spec

    def ended(self, patience: float) -> list[tuple[RunSpec, Outcome]]:
        """Make the run; without one, wait ``patience`` seconds for the process that is at it."""
        if self._spec is None:
            time.sleep(patience)
            return []
        spec, self._spec = self._spec, None
        with seeded(spec.seed):
            outcome = make(self._problems[spec.reference], spec, lambda step: self._told(spec, step, spec.steps))
        return [(spec, outcome)]
