"""MT-DAO among workers: local steps, and averages of weights and moments, each with a period of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from torch import Tensor

from polyak.declare import COUNT, Argument, whole
from polyak.distributed.workers import (
    ProcessGroup,
    Workers,
    check_counts,
    described,
    options_of,
    squared_norm,
    words,
)
from polyak.memory.averages import half_life
from polyak.optim.engine.execution import untraced
from polyak.optim.engine.intake import is_request_for_state
from polyak.optim.engine.member import STEP, STEPS, local
from polyak.optim.engine.rule import Options
from polyak.optim.methods.mt_dao import MTDAO as OfOneWorker
from polyak.optim.methods.mt_dao import listed

SECOND = "exp_avg_sq"


class MTDAO(OfOneWorker):
    """MT-DAO (Iacob et al., arXiv:2510.05361): local steps with slow moments, which workers average with the weights.

    ::

        on worker m at step t:  the moments u_j (and v, adam) take in its gradient
        where due:  u_j <- mean over workers of u_j;  v as well
        the step of polyak.optim.MTDAO with these moments, on its own gradient
        where due:  p <- mean over workers of p;  v as well (adopt)

    Something with period K is due at steps K, 2K, ...; with ``sync_first`` after the first step too, and then every K:
    1, K + 1, ..., as the paper counts. ``period`` is that of the weights and of every memory that ``periods`` does not
    name: ``exp_avg_1`` ... ``exp_avg_N``, the moments, and ``exp_avg_sq``; None is never. A period of the size of a
    moment's half-life suits it.

    Workers start from the same weights, which is not checked. Every rank of ``process_group`` is a worker; with FSDP2
    give the group of the other mesh dimension, and shards are averaged as they are.

    A worker with a gradient that is not finite makes no local step, with a warning, but takes part in all averages, so
    that none waits for ever. One whose ``participates`` is False gives nothing and takes what the others have, their
    count of steps too: one that joins calls :meth:`sync` so, as the others do; so does, with a warning, one whose
    weights are not finite. With the second moment goes a weight's own count of steps, for one that has none yet too.

    Learning rates may differ between workers; all other arguments may not. Between averages workers have memories of
    their own: each saves its own state, as ``{f"worker{rank}": optimizer.state_dict()}``, or all save right after a
    :meth:`sync`. All must call ``step`` as often: ``torch.amp.GradScaler`` leaves out the step of the worker with an
    inf alone, and the others wait; use bfloat16, which needs none, or have all leave out the step.

    Raises:
        TypeError: a period that is no integer.
        ValueError: an argument outside what is allowed; ``check_finite``, which would stop one worker alone;
            ``rounding="kahan"``, whose compensation would be of weights that averages have replaced; on all workers,
            at the start and where they meet, other parameters or (at the start) arguments than worker 0's.
        RuntimeError: on all workers where they meet at different steps.
    """

    period: Annotated[int, Argument("local steps between averages of the weights, K_x, at least 1")] = 32
    periods: Annotated[Mapping[str, int | None] | None, Argument("periods of memories by their names; None: never")] = (
        None
    )
    sync_first: Annotated[bool, Argument("average after the first step too")] = False
    process_group: Annotated[
        ProcessGroup | None, Argument("the workers; None: the default group, or this process alone")
    ] = None

    def _begin(self, values: dict[str, Any]) -> None:
        own = {name: values.pop(name) for name in ("period", "periods", "sync_first", "process_group")}
        period = whole("period", own["period"], "MTDAO", COUNT)
        periods = dict(own["periods"] or {})
        for name, value in periods.items():
            if value is not None:
                whole(f"periods[{name!r}]", value, "MTDAO", COUNT)
        self._due_every = {"": period, **periods}
        self._first = bool(own["sync_first"])
        self.participates = True
        super()._begin(values)
        if self.check_finite:
            raise ValueError("MTDAO: check_finite must be False: it would stop one worker while the others wait; a "
                             "gradient that is not finite makes no local step")  # fmt: skip
        self._check_names(periods)
        self.workers = Workers(own["process_group"])
        asked = [options_of(self.param_groups), sorted(self._due_every.items(), key=str), self._first]
        self.workers.check_alike(
            "parameters and arguments", [described(self.param_groups), asked], self._any(), "MTDAO"
        )

    def _weights(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _any(self) -> Tensor:
        return self._weights()[0]

    def _check_names(self, periods: Mapping[str, int | None]) -> None:
        names = {slot.name for group in self.param_groups for slot in self.chain_of(group).slots}
        for name in periods:
            if name not in names:
                raise ValueError(f"MTDAO: periods must be of {sorted(names)}, got {name!r}")

    def check_options(self, group: Options) -> None:
        """Memories are averaged as they are, and one of them outlives a period."""
        super().check_options(group)
        if group.get("state_storage", "float32") != "float32":
            raise ValueError(f"MTDAO: state_storage must be 'float32' where memories are averaged, got "
                             f"{group['state_storage']!r}")  # fmt: skip
        if group.get("rounding") == "kahan":
            raise ValueError("MTDAO: rounding must be 'nearest' or 'stochastic', got 'kahan', whose compensation is of "
                             "a worker's own weights, which averages replace")  # fmt: skip
        slowest, period = max(map(float, listed(group["betas"][0]))), self._due_every[""]
        if half_life(slowest) < period:
            self.advise(
                f"beta^K = {slowest}^{period} = {slowest**period:.2g}: the moment forgets the sync before the next"
            )

    @property
    def made(self) -> int:
        """The number of steps made."""
        return max(int(group.get(STEPS, 0)) for group in self.param_groups)

    def _is_due(self, name: str) -> bool:
        """Whether something is averaged in the step that is being made; ``""`` are the weights."""
        period = self._due_every.get(name, self._due_every[""])
        return period is not None and (self.made + (not self._first)) % period == 0

    def _memories(self, group: Options) -> tuple[list[str], list[str]]:
        """Names of the memories that are averaged before the weights move, and of those after it."""
        names = [slot.name for slot in self.chain_of(group).slots]
        late = [SECOND] if group["variant"] == "adopt" else []
        return [name for name in names if name not in late], late

    def _tensors(self, group: Options, names: Sequence[str]) -> list[Tensor]:
        """Memories of all weights; such as a weight lacks, whose first gradient is to come, are zeros from now on."""
        slots = {slot.name: slot for slot in self.chain_of(group).slots}
        found = []
        for p in group["params"]:
            for name in names if p.requires_grad else ():
                if name not in self.state[p]:
                    self.state[p][name] = torch.zeros_like(p.detach(), dtype=slots[name].dtype_for(p.dtype))
                found.append(self.state[p][name])
        return found

    @untraced
    def _advance(self, loss: float | Tensor | None) -> None:
        if not self._stepped and is_request_for_state(self.param_groups):
            super()._advance(loss)
            return
        self._refuse_sparse()
        groups = self.param_groups
        for group in groups:
            group[STEPS] = self.made
        pairs = [self._memories(group) for group in groups]
        early, late = ([[n for n in names if self._is_due(n)] for names in part] for part in zip(*pairs, strict=True))
        weights = self._is_due("")
        taking = self._meet() if weights or any(early) or any(late) else []
        if not self._is_finite():
            self.advise(f"a gradient of worker {self.workers.rank} is not finite: no local step {self.made + 1}")
            self._mean(early, taking)
            for group in groups:
                group[STEPS] += 1
        elif any(early):
            with self._in("absorb"), self._uncounted():
                super()._advance(loss)
            self._mean(early, taking)
            with self._in("apply"):
                super()._advance(loss)
        else:
            super()._advance(loss)
        self._mean(late, taking, weights)

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        """Within it the weights' own counts stay: the other half of the step counts."""
        weights = self._weights()
        before = [float(self.state[p].get(STEP, 0.0)) for p in weights]
        yield
        for p, steps in zip(weights, before, strict=True):
            if STEP in self.state[p]:
                self.state[p][STEP].fill_(steps)

    def _is_finite(self) -> bool:
        """Whether all gradients of this worker are; ranks that share its shards find the same."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._weights()]
        return math.isfinite(squared_norm(grads))

    def _refuse_sparse(self) -> None:
        if any(p.grad is not None and p.grad.is_sparse for p in self._weights()):
            raise RuntimeError("MTDAO: a gradient is sparse; its moments are dense, and averages would be too")

    def _meet(self) -> list[bool]:
        """Which workers take part; the others get their count of steps."""
        finite = math.isfinite(squared_norm(self._weights()))
        met = self.workers.meet(
            "parameters", described(self.param_groups), self._any(), "MTDAO",
            steps=self.made, participates=self.participates, finite=finite,
        )  # fmt: skip
        if met.lost:
            self.advise(f"weights of {words(met.lost)} are not finite: they take the others' at step {self.made + 1}")
        pairs = list(zip(met.steps, met.taking, strict=True))
        present = [made for made, takes in pairs if takes]
        if present:
            check_counts([made if takes else present[0] for made, takes in pairs], "MTDAO")
            for group in self.param_groups:
                group[STEPS] = present[0]
        return met.taking

    def _mean(self, names: Sequence[Sequence[str]], taking: Sequence[bool], weights: bool = False) -> None:
        """Average memories, by group, and weights."""
        if not any(taking):
            return
        tensors = [t for group, own in zip(self.param_groups, names, strict=True) for t in self._tensors(group, own)]
        if weights:
            tensors += [p for p in self._weights() if p.requires_grad]
        self.workers.mean_(tensors, taking[self.workers.rank], sum(taking))
        self._take_counts(names, taking)

    def _take_counts(self, names: Sequence[Sequence[str]], taking: Sequence[bool]) -> None:
        """Weights' own counts of steps, with the memory that needs them; whoever has one of its own keeps it."""
        timed = [
            p
            for group, own in zip(self.param_groups, names, strict=True)
            if self.chain_of(group).timed and ("exp_avg_1" if group["variant"] == "sgdm" else SECOND) in own
            for p in group["params"]
        ]
        if not timed:
            return
        counts = [float(self.state[p].get(STEP, 0.0)) for p in timed]
        mean = torch.tensor(counts, dtype=torch.float64, device=local(self._any()).device)
        self.workers.mean_([mean], taking[self.workers.rank], sum(taking))
        for p, own, others in zip(timed, counts, mean.tolist(), strict=True):
            if others and not (own and taking[self.workers.rank]):
                self.state[p][STEP] = torch.tensor(float(math.ceil(others)))

    @torch.no_grad()
    def sync(self) -> None:
        """Average the weights and all memories now; every worker calls it.

        Raises:
            RuntimeError: on all workers, if those that take part have made different numbers of steps.
        """
        taking = self._meet()
        self._mean([[*early, *late] for early, late in map(self._memories, self.param_groups)], taking, weights=True)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_due_every", "_first", "participates", "workers")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: state.pop(name) for name in ("_due_every", "_first", "participates", "workers")})
        super().__setstate__(state)
