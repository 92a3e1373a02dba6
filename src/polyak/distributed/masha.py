"""MASHA1 and MASHA2 among processes: each is one worker and holds its own closure and residual."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor

from polyak.declare import Argument
from polyak.distributed.workers import ProcessGroup, Workers, check_counts, described, words
from polyak.optim.solvers import masha
from polyak.optim.solvers.closures import Closure
from polyak.optim.solvers.compressors import Compressor
from polyak.optim.solvers.variational import MASHA, _Draws

Found = TypeVar("Found")
Group = Annotated[ProcessGroup | None, Argument("the workers; None: the default group, or this process alone")]


def _said(compressor: Compressor) -> tuple[str, str, str]:
    """A compressor's class and arguments."""
    kind = type(compressor)
    return kind.__module__, kind.__qualname__, repr(vars(compressor))


class _AmongProcesses(MASHA):
    """What a MASHA does differently where every process is a worker: means are over processes.

    ::

        as in one process
    """

    def _begin(self, values: dict[str, Any]) -> None:
        self.workers = Workers(values.pop("process_group"))
        super()._begin(values)
        options = [[group[h.name] for h in self.hypers] for group in self.param_groups]
        asked = [described(self.param_groups), options, _said(self.compressor), _said(self.server_compressor)]
        self.workers.check_alike("parameters and arguments", asked, self._params()[0], type(self).__name__)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "workers": self.workers}

    @torch.no_grad()
    def step(self, loss: Closure, full: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Perform one step, as every other process does; returns the mean loss of all at the half step.

        Args:
            loss: this worker's closure, as one of those in one process.
            full: what its part of F(w) is exchanged of, where ``loss`` is of a batch; None takes ``loss``.

        Raises:
            RuntimeError: on all workers, if they have made different numbers of steps, or if on one a closure fails or
                cannot be called, or what it returns is not finite or breaks a contract; parameters and memories are
                then as they were before.
        """
        everyone = None if full is None else [full]
        self._agreed(lambda: (self._checked([loss], "losses"), self._checked(everyone or [loss], "full")))
        return super().step([loss], everyone)

    def _draws(self, workers: int) -> _Draws:
        drawn = super()._draws(self.workers.size)
        return drawn._replace(workers=[drawn.workers[self.workers.rank]])

    def _operator(self, closures: Sequence[Closure], name: str) -> list[Tensor]:
        found = self._agreed(lambda: super(_AmongProcesses, self)._operator(closures, name))
        return self._mean(found)

    def _from_workers(
        self, workers: Sequence[Closure], half: list[Tensor], w: list[Tensor], draws: _Draws,
        residuals: list[list[Tensor]],
    ) -> tuple[Tensor, list[Tensor], list[list[Tensor]]]:  # fmt: skip
        value, mean, kept = self._agreed(
            lambda: super(_AmongProcesses, self)._from_workers(workers, half, w, draws, residuals)
        )
        value, *mean = self._mean([value, *mean])
        return value, mean, kept

    def _mean(self, tensors: list[Tensor]) -> list[Tensor]:
        own = [t.clone() for t in tensors]
        self.workers.mean_(own, True, self.workers.size)
        return own

    def _agreed(self, compute: Callable[[], Found]) -> Found:
        """What this worker computes; all raise where one cannot or is at another step, so that none waits for ever."""
        failure: Exception | None = None
        found: list[Found] = []
        try:
            found.append(compute())
        except Exception as error:
            failure = error
        said = self.workers.told([failure is not None, self.param_groups[0]["step"]], self._params()[0])
        check_counts([step for _, step in said], type(self).__name__)
        if failed := [i for i, (is_lost, _) in enumerate(said) if is_lost]:
            raise RuntimeError(f"{type(self).__name__}: {words(failed)} could not compute its part") from failure
        return found[0]


class MASHA1(_AmongProcesses, masha.MASHA1):
    """:class:`polyak.optim.MASHA1`, each worker a process: arXiv:2110.03313.

    ::

        q <- Q_server(mean over processes of Q_i(F_i(zh) - F_i(w)));  the rest as in one process

    Steps are those of one process with all closures, up to rounding. The coin and what the server draws come from
    ``seed``, which is the same on all; each process does the server's part itself. Workers start from the same
    weights, which is not checked.
    """

    _: KW_ONLY
    process_group: Group = None


class MASHA2(_AmongProcesses, masha.MASHA2):
    """:class:`polyak.optim.MASHA2`, each worker a process: arXiv:2110.03313.

    ::

        q_i <- C_i(lr * (F_i(zh) - F_i(w)) + e_i), e_i kept by its process;  the rest as in one process

    See :class:`MASHA1`. A worker's state holds its own residual, so that every rank saves its own.
    """

    _: KW_ONLY
    process_group: Group = None
