"""Diagnostics: what the step would do with the gradients present now.

Rules are pure, so their figures (mask share, cosine, damping, trust ratio, update RMS) are found by running the
read-out again, when asked. A step pays nothing for them and waits for no device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyak.optim.engine import kernels
from polyak.optim.engine.execute import Mode, Pass, coefficients, drive, run
from polyak.optim.engine.layout import Unit
from polyak.optim.engine.member import local
from polyak.optim.engine.sharding import found_anywhere, stand_in

if TYPE_CHECKING:
    from polyak.optim.engine.member import Member
    from polyak.optim.engine.plan import GroupPlan


class Look(Pass):
    """A pass that writes nothing and keeps the rules' notes."""

    figures: dict[str, Tensor]

    def apply(self, grads: Sequence[Tensor], answers: tuple[Any, ...]) -> None:
        """Run the chain to its end and note the figures instead of writing."""
        unit, self.figures = self.unit, {}
        weights = unit.weights()
        notes: dict[str, Tensor] = {}
        x, _, _ = kernels.evaluate(
            unit.chain, self.names, self.mode.maximize, weights, unit.gradients(grads), tuple(unit.columns_of()),
            self.scalars, answers, unit.count, notes,
        )  # fmt: skip
        notes["update_rms"] = (x.w - weights).square().mean().sqrt()
        self.figures = {name: value.double().mean() for name, value in notes.items()}


def _look(plan: GroupPlan, member: Member) -> Look:
    memories = [
        local(member.state[slot.name]).view(1) if slot.shape == "scalar" else local(member.state[slot.name])
        for slot in member.chain.slots
    ]
    unit = stand_in(Unit([member], memories, direct=member.is_direct()))
    t = int(plan.times[member.index]) + 1 if plan.times is not None else 1
    names, scalars = coefficients(member.chain, plan.group, t, member.value.device)
    return Look(unit, names, scalars, Mode(compiled=False, whole=True, maximize=bool(plan.group["maximize"])))


@torch.no_grad()
def read(plans: Sequence[GroupPlan]) -> dict[str, dict[str, float]]:
    """Figures by parameter name. Parameters without a gradient are left out, and those of which nothing lies here."""
    looks: dict[str, Look] = {}
    runs = []
    for plan in plans:
        for member in plan.members:
            g = plan.grads[member.index]
            if (g is None or not member.numel) and not member.sharded:
                continue
            look = _look(plan, member)
            if g is not None and member.numel:
                looks[member.name] = look
            runs.append(run(look, [g] if g is not None else None))
        plan.grads = []
    drive(runs)
    return {name: {key: float(v) for key, v in look.figures.items()} for name, look in looks.items()}


def refuse_non_finite(plans: Sequence[GroupPlan]) -> None:
    """Raise ``RuntimeError`` naming the parameters whose gradient is not finite."""
    members = [(member, plan.grads[member.index]) for plan in plans for member in plan.members]
    here = [g is not None and not bool(torch.isfinite(g).all()) for _, g in members]
    found, elsewhere = found_anywhere([member.param for member, _ in members], here)
    bad = [member.name for (member, _), wrong in zip(members, found, strict=True) if wrong]
    if bad or elsewhere:
        for plan in plans:
            plan.grads = []  # a plan left behind must not keep gradients alive
        where = ", ".join(bad) or "a parameter of another rank"
        raise RuntimeError(f"check_finite: non-finite gradient in {where}; nothing was changed")
