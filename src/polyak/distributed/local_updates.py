"""Local updates: workers step by themselves and meet once a period, where an outer optimizer takes their mean."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from polyak.declare import COUNT, POSITIVE, Hyper, whole
from polyak.distributed.workers import (
    ProcessGroup,
    Workers,
    check_counts,
    described,
    options_of,
    squared_norm,
    words,
)
from polyak.optim.engine.intake import is_request_for_state

OWNER = "LocalUpdates"


class LocalUpdates:
    """Any inner optimizer, whose steps are averaged every ``sync_every`` steps by any outer optimizer.

    ::

        every worker: sync_every steps of the inner optimizer, from theta to theta_i
        D <- mean over workers of (theta - theta_i);  theta <- the outer optimizer's step from theta with gradient D

    The inner optimizer is stepped as ever; hooks on its ``step`` do the rest. It keeps its memories for the whole run,
    neither averaged nor reset. With AdamW inside and Nesterov outside this is DiLoCo (arXiv:2311.08105); with
    ``SGD(lr=1.0)`` outside, plain averaging of weights (local SGD, FedAvg). ::

        inner = polyak.optim.AdamW(model.parameters(), lr=4e-4)
        outer = polyak.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
        local = LocalUpdates(inner, outer, sync_every=500)
        for x, y in loader:
            inner.zero_grad()
            loss_of(model(x), y).backward()
            inner.step()

    Workers start from the same weights, which is not checked: load them, or broadcast them. Every rank of
    ``process_group`` is a worker; where a worker is several ranks that share a model by FSDP2, give the group of the
    other mesh dimension (``mesh["replica"].get_group()``): shards are averaged as they are.

    A worker whose pseudo-gradient, or one of whose ``buffers``, is not finite is dropped at that sync point, with a
    warning that names it on all workers; so is one whose ``participates`` is False. It is in all collectives
    nonetheless, so that none waits for ever, and goes on from the new weights; memories of its inner optimizer that
    are not finite start anew. If none takes part, all go back to the last weights and the outer optimizer makes no
    step.

    Learning rates may differ between workers; other options may not. The inner memories are a worker's own: each saves
    its own state, as ``{f"worker{rank}": local.state_dict()}``. All must step as often: ``torch.amp.GradScaler`` leaves
    out the step of the worker with an inf alone, and the others wait; train in bfloat16, which needs none, or have all
    leave out the step. Parameters that are frozen (``requires_grad=False``) are left as they are.

    Args:
        inner: any ``torch.optim.Optimizer``.
        outer: another with the same parameters; gradients are those of the period's mean.
        sync_every: local steps of a period, H, at least 1.
        process_group: the workers; None: the default group, or this process alone where there is none.
        max_delta_norm: a worker's pseudo-gradient, over all parameters, is shortened to this norm; None: it is not.
        buffers: tensors that are averaged too, such as a model's running statistics.

    Raises:
        TypeError: what is no optimizer; a period that is no integer; a complex parameter.
        ValueError: a period below 1, optimizers of other parameters, an inner ``rounding="kahan"``, whose compensation
            would be of weights that a sync has replaced; on all workers, at the start and at a sync point, other
            parameters or buffers, and at the start other arguments.
        RuntimeError: at a sync point, workers that have made different numbers of steps.
    """

    participates: bool = True

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        outer: torch.optim.Optimizer,
        sync_every: int,
        process_group: ProcessGroup | None = None,
        *,
        max_delta_norm: float | None = None,
        buffers: Iterable[Tensor] = (),
    ) -> None:
        for name, one in (("inner", inner), ("outer", outer)):
            if not isinstance(one, torch.optim.Optimizer):
                raise TypeError(f"{OWNER}: {name} must be a torch.optim.Optimizer, got {type(one).__name__}")
        Hyper("max_delta_norm", None, POSITIVE, optional=True).check(max_delta_norm, OWNER)
        self.sync_every = whole("sync_every", sync_every, OWNER, COUNT)
        self.inner, self.outer, self.max_delta_norm = inner, outer, max_delta_norm
        self.buffers = [b for b in buffers if b.is_floating_point()]
        params = self._params(inner)
        if {id(p) for p in params} != {id(p) for p in self._params(outer)} or inner is outer:
            raise ValueError(f"{OWNER}: outer must be another optimizer with all parameters of inner, and no others")
        self._refuse_unfit(params)
        self.workers = Workers(process_group)
        options = [options_of(inner.param_groups), options_of(outer.param_groups), sync_every, max_delta_norm]
        asked = [self._described(), options]
        self.workers.check_alike("parameters, buffers and arguments", asked, params[0], OWNER)
        self.steps = 0
        self._is_new = not inner.state
        self._start = [p.detach().clone() for p in params]
        self._hook = inner.register_step_post_hook(self._count)

    @staticmethod
    def _params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
        return [p for group in optimizer.param_groups for p in group["params"]]

    def _refuse_unfit(self, params: list[Tensor]) -> None:
        if any(p.is_complex() for p in params):
            raise TypeError(f"{OWNER}: a parameter is complex; pass torch.view_as_real(parameter) instead")
        if any(group.get("rounding") == "kahan" for group in self.inner.param_groups):
            raise ValueError(
                f"{OWNER}: inner must not have rounding='kahan': its compensation is of weights that a sync replaces"
            )

    def _described(self) -> list[Any]:
        return [described(self.inner.param_groups), [(tuple(b.shape), str(b.dtype)) for b in self.buffers]]

    def _count(self, *_: Any) -> None:
        was_new, self._is_new = self._is_new, not self.inner.state
        if was_new and not self.steps and is_request_for_state(self.inner.param_groups):
            return  # torch.distributed.checkpoint's, which is no step
        self.steps += 1
        if self.steps % self.sync_every == 0:
            self.sync()

    @torch.no_grad()
    def sync(self) -> None:
        """Meet the other workers now; the hook does it at the end of a period.

        Raises:
            RuntimeError: on all workers, if they have made different numbers of steps.
        """
        params = self._params(self.inner)
        # all workers must hear of one that has other parameters now
        deltas = [a - p for a, p in zip(self._start, params, strict=False)]
        square = squared_norm(deltas)
        finite = math.isfinite(square) and (not self.buffers or math.isfinite(squared_norm(self.buffers)))
        met = self.workers.meet(
            "parameters and buffers", self._described(), deltas[0], OWNER,
            steps=self.steps, participates=self.participates, finite=finite,
        )  # fmt: skip
        if len(params) != len(self._start):
            raise RuntimeError(f"{OWNER}: inner has {len(params)} parameters, and had {len(self._start)}")
        check_counts(met.steps, OWNER)
        taking = met.taking
        self._warn(met.lost)
        for p, a in zip(params, self._start, strict=True):
            p.copy_(a)
        if any(taking):
            self._shorten(deltas, math.sqrt(square) if taking[self.workers.rank] else 0.0)
            self.workers.mean_([*deltas, *self.buffers], taking[self.workers.rank], sum(taking))
            self._step_outside(params, deltas)
        if not finite:
            self._forget()
        for p, a in zip(params, self._start, strict=True):
            a.copy_(p)

    def _shorten(self, deltas: list[Tensor], norm: float) -> None:
        if self.max_delta_norm is not None and norm > self.max_delta_norm:
            torch._foreach_mul_(deltas, self.max_delta_norm / norm)

    def _step_outside(self, params: list[Tensor], deltas: list[Tensor]) -> None:
        grads = [p.grad for p in params]
        try:
            for p, delta in zip(params, deltas, strict=True):
                p.grad = delta if p.requires_grad else None
            self.outer.step()
        finally:
            for p, g in zip(params, grads, strict=True):
                p.grad = g

    def _forget(self) -> None:
        """Let go the inner memories of parameters that have one that is not finite."""
        for p, memories in list(self.inner.state.items()):
            if any(isinstance(m, Tensor) and not bool(m.isfinite().all()) for m in memories.values()):
                del self.inner.state[p]

    def _warn(self, dropped: list[int]) -> None:
        if dropped:
            warnings.warn(
                f"{OWNER}: the pseudo-gradient or a buffer of {words(dropped)} at step {self.steps} is not finite; it "
                "is dropped",
                UserWarning,
                stacklevel=2,
            )

    def close(self) -> None:
        """Take the hook off the inner optimizer, which is then as it was before."""
        self._hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """Both optimizers' states, the count of steps and the weights that the period started from.

        A period may be open. The weights of now are the model's to save.
        """
        return {
            "inner": self.inner.state_dict(), "outer": self.outer.state_dict(), "steps": self.steps,
            "start": [a.clone() for a in self._start],
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as the run that saved it.

        Raises:
            ValueError: weights of other shapes, or what the optimizers refuse; nothing has changed then.
        """
        shapes = [tuple(a.shape) for a in state_dict["start"]]
        own = [tuple(a.shape) for a in self._start]
        if shapes != own:
            raise ValueError(f"{OWNER}: the state_dict has parameters of shapes {shapes}, here {own}")
        before = deepcopy(self.inner.state_dict())
        self.inner.load_state_dict(state_dict["inner"])
        try:
            self.outer.load_state_dict(state_dict["outer"])
        except Exception:
            self.inner.load_state_dict(before)
            raise
        self.steps, self._is_new = int(state_dict["steps"]), not self.inner.state
        for a, saved in zip(self._start, state_dict["start"], strict=True):
            a.copy_(saved)
