"""The planner: keeps the plans of an optimizer's groups, and makes them anew when they no longer describe it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from polyak.optim.engine import diagnose
from polyak.optim.engine.execution import Execution, in_force
from polyak.optim.engine.member import STEPS
from polyak.optim.engine.plan import GroupPlan, Planned
from polyak.optim.engine.run import check_totals
from polyak.optim.engine.units import mark_crossing

Gradients = list[list[Tensor | None]]


class Runs(Planned, Protocol):
    """What the planner needs of an optimizer."""

    execution: Execution
    check_finite: bool


class Planner:
    """The plans of one optimizer."""

    def __init__(self) -> None:
        self._plans: list[GroupPlan] = []
        self._entries: list[int] = []
        self._elements = 0

    def chosen(self, optimizer: Runs) -> tuple[str, str]:
        """How the optimizer runs now, and why."""
        if not self._plans:
            listed = [p for group in optimizer.param_groups for p in group["params"]]
            self._elements = sum(p.numel() for p in listed if not torch.nn.parameter.is_lazy(p))
        return in_force(optimizer.execution, self._elements)

    def current(self, optimizer: Runs) -> list[GroupPlan]:
        """Plans that describe the optimizer as it is now, with the gradients read."""
        grads: Gradients = [[p.grad for p in group["params"]] for group in optimizer.param_groups]
        diagnose.refuse_sparse(optimizer.param_groups, grads)
        if optimizer.check_finite:
            diagnose.refuse_non_finite(optimizer.param_groups, grads)
        chosen = self.chosen(optimizer)[0]
        good = len(self._plans) == len(grads) and [*map(id, optimizer.state.values())] == self._entries
        if not good or not all([plan.refresh(chosen, g) for plan, g in zip(self._plans, grads, strict=True)]):
            self._plans = []
            self._plans = _planned(optimizer, self.chosen(optimizer)[0], grads, bind=True)
            self._entries = [*map(id, optimizer.state.values())]
        _agree_on_steps(optimizer)
        return self._plans

    def without_gradients(self, optimizer: Runs, bind: bool = False) -> list[GroupPlan]:
        """Plans of all trained parameters, that nothing is made for.

        With ``bind`` plans of the parameters that have a state, whose memories are made complete.
        """
        nothing: Gradients = [[None] * len(group["params"]) for group in optimizer.param_groups]
        return _planned(optimizer, self.chosen(optimizer)[0], nothing, bind)

    def let_go(self) -> None:
        """Keep no gradient alive."""
        for plan in self._plans:
            plan.let_go()


def _agree_on_steps(optimizer: Runs) -> None:
    """Groups whose chains read the optimizer's number of steps have it, those that were added later too."""
    groups = [group for group in optimizer.param_groups if optimizer.chain_of(group).reads_steps]
    if groups:
        made = max(group.get(STEPS, 0) for group in groups)
        for group in groups:
            group[STEPS] = made


def _planned(optimizer: Runs, chosen: str, grads: Gradients, bind: bool) -> list[GroupPlan]:
    plans = [GroupPlan(optimizer, i, chosen, own, dry=not bind) for i, own in enumerate(grads)]
    check_totals(m.questions for plan in plans for m in plan.members.values())
    mark_crossing(m for plan in plans for m in plan.members.values())
    for plan in plans:
        plan.divide()
        if bind:
            plan.bind()
    return plans
