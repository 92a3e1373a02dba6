"""Diagnostics: what the step would do with the gradients present now.

Rules are pure, so their figures (mask share, cosine, damping, trust ratio, update RMS) are found by running the
read-out again, when asked. A step pays nothing for them and waits for no device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyak.optim.engine import kernels
from polyak.optim.engine.member import Member, holds_nothing, local, name_of
from polyak.optim.engine.plan import GroupPlan
from polyak.optim.engine.run import coefficients, drive, run
from polyak.optim.engine.sharding import found_anywhere
from polyak.optim.engine.units import Mode, Moment, Piece, Unit


class _Look(Piece):
    """Arrays that are read and never written; keeps the rules' notes."""

    figures: dict[str, Tensor]

    def pass_over(self, moment: Moment, answers: list[Any], level: int | None) -> list[tuple[Tensor, ...]]:
        """As ever up to a question; at the end the figures are noted instead of writing."""
        if level is not None:
            return super().pass_over(moment, answers, level)
        form = self.form(moment.names, None)
        notes: dict[str, Tensor] = {}
        x, _ = kernels.evaluate(form, self.tensors(form, moment, answers), notes)
        notes["update_rms"] = (x.w - self.p).square().mean().sqrt()
        self.figures = {name: value.double().mean() for name, value in notes.items()}
        return []

    def finish(self) -> None:
        """Nothing was written."""


class _Looking(Unit):
    """One member that is looked at."""

    def __init__(self, member: Member) -> None:
        super().__init__([member], gathered=False)
        self.look: _Look | None = None

    def pieces(self, grads: Sequence[Tensor], mode: Mode, names: kernels.Names) -> list[Piece]:
        """The arrays to look at."""
        self.look = _Look(self.members, grads, mode, names)
        return [self.look]


@torch.no_grad()
def read(plans: Sequence[GroupPlan], inputs: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Figures by parameter name. Parameters without a gradient are left out, and those of which nothing lies here."""
    looks: list[_Looking] = []
    runs = []
    for plan in plans:
        mode = Mode(compiled=False, whole=True, maximize=bool(plan.group["maximize"]))
        for member in plan.members.values():
            g = plan.grads[member.index]
            if (g is None or not member.numel) and not member.sharded:
                continue
            looks.append(_Looking(member))
            names, scalars = coefficients(member.chain, plan.group, int(member.time) + 1, member.value.device)
            runs.append(run(looks[-1], [g] if g is not None else [], Moment(names, scalars, plan.inputs(inputs)), mode))
        plan.let_go()
    drive(runs)
    seen = [(one.first.name, one.look) for one in looks if one.look is not None and one.first.numel]
    return {name: {key: float(v) for key, v in look.figures.items()} for name, look in seen}


def refuse_sparse(groups: Sequence[dict[str, Any]], grads: Sequence[Sequence[Tensor | None]]) -> None:
    """Raise ``RuntimeError`` naming the first parameter whose gradient is sparse."""
    for index, (group, own) in enumerate(zip(groups, grads, strict=True)):
        if not {g.layout for g in own if g is not None} <= {torch.strided}:
            i = next(i for i, g in enumerate(own) if g is not None and g.layout is not torch.strided)
            raise RuntimeError(
                f"sparse gradients are not supported ({name_of(group, index, i)}); consider torch.optim.SparseAdam"
            )


def refuse_non_finite(
    groups: Sequence[dict[str, Any]],
    grads: Sequence[Sequence[Tensor | None]],
    outcome: str = "nothing was changed",
) -> None:
    """Raise ``RuntimeError`` naming the parameters whose gradient is not finite, and what came of the step."""
    params, names, here = [], [], []
    for index, (group, own) in enumerate(zip(groups, grads, strict=True)):
        for i, (p, g) in enumerate(zip(group["params"], own, strict=True)):
            params.append(p)
            names.append(name_of(group, index, i))
            seen = g is not None and not holds_nothing(local(g))
            here.append(seen and not bool(torch.isfinite(local(g)).all()))
    found, elsewhere = found_anywhere(params, here)
    bad = [name for name, wrong in zip(names, found, strict=True) if wrong]
    if bad or elsewhere:
        where = ", ".join(bad) or "a parameter of another rank"
        raise RuntimeError(f"check_finite: non-finite gradient in {where}; {outcome}")
