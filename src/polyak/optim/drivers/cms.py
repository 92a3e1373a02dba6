"""CMS: groups of weights that step at periods of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from polyak.declare import Paper, whole
from polyak.optim.engine.optimizer import Optimizer

PERIOD, HELD = "period", "steps_held"
"""Options of a group: its period, and the steps whose gradients it holds."""
Reduction = Literal["sum", "mean"]


class CMS:
    """The continuum memory system of Nested Learning (arXiv:2512.24695, eq. 71) as a wrapper: levels of an optimizer.

    ::

        every step:                a <- a + g
        every ``period``-th step:  p <- the optimizer's step with a;  a <- 0

    Each parameter group is a level with a period; between its steps its weights and the optimizer's memories of them
    stay as they are, so this is gradient accumulation with a period for each group. Period 1 is the optimizer itself
    and holds no sum. ``lr`` schedules are driven on the optimizer. ::

        optimizer = AdamW([{"params": fast, "period": 1}, {"params": slow, "period": 16}], lr=1e-3)
        levels = CMS(optimizer)
        for x, y in loader:
            levels.zero_grad()
            loss_of(model(x), y).backward()
            levels.step()

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        periods: one for all groups, or one a group, whole numbers >= 1; None reads ``period`` of each group.
        reduction: ``"sum"`` steps with the sum of a chunk's gradients (the paper), ``"mean"`` with their mean over the
            chunk's steps.

    Raises:
        TypeError: if the optimizer is none, or a period is no whole number.
        ValueError: a period below 1, a group without one, another number of periods than groups, or a ``reduction``
            that is neither.

    There is no official code. The sum in eq. 71 runs from ``i - C``, which counts one step twice; here each counts
    once. Sums of half-precision gradients are kept in float32.
    """

    slug = "nl-cms"
    paper = Paper("Nested Learning: The Illusion of Deep Learning Architectures", 2025, "2512.24695")
    vectors = ("nl-cms-card",)

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        periods: int | Sequence[int] | None = None,
        reduction: Reduction = "sum",
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"CMS: optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
        if reduction not in get_args(Reduction):
            raise ValueError(f"CMS: reduction must be one of {list(get_args(Reduction))}, got {reduction!r}")
        found = _periods(optimizer.param_groups, periods)
        self.optimizer, self.reduction = optimizer, reduction
        self._sums: dict[Tensor, Tensor] = {}
        for group, period in zip(optimizer.param_groups, found, strict=True):
            group[PERIOD], group[HELD] = period, 0

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups."""
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients; what is held of earlier steps stays."""
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, **given: Any) -> Any:
        """Take the gradients in, and step the levels whose period ends.

        Gradients of a level with a period above 1 are consumed: ``p.grad`` is None afterwards.

        Args:
            closure: forward and backward; called once, with gradients enabled.
            **given: handed to the optimizer's ``step``, such as ``loss``.

        Returns:
            What the closure returned; None without one.

        Raises:
            ValueError: if a group that was added later has no valid period.
            RuntimeError: a sparse gradient, or what the optimizer refuses to step with. As after any error, nothing has
                changed and ``p.grad`` is what it was, so that the call can be made again.
        """
        _periods(self.param_groups, None)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_sparse()
        if loss is not None and isinstance(self.optimizer, Optimizer):
            given = {"loss": loss, **given}
        counts = [group.get(HELD, 0) + 1 for group in self.param_groups]
        due = [count >= group[PERIOD] for count, group in zip(counts, self.param_groups, strict=True)]
        taken = {p: p.grad for p in self._params() if p.grad is not None}
        self._advance(due, counts, taken, given)
        for group in self.param_groups:
            for p in group["params"] if group[PERIOD] > 1 else ():
                p.grad = None
        return loss

    @torch.no_grad()
    def flush(self, **given: Any) -> None:
        """Step every level with what it holds of an unfinished chunk, as at the end of a run.

        Gradients that no :meth:`step` has taken in stay where they are and have no part in it.
        """
        counts = [group.get(HELD, 0) for group in self.param_groups]
        self._advance([count > 0 for count in counts], counts, {}, given)

    def _refuse_sparse(self) -> None:
        slow = (p for group in self.param_groups if group[PERIOD] > 1 for p in group["params"])
        if any(p.grad is not None and p.grad.is_sparse for p in slow):
            raise RuntimeError("CMS: a sparse gradient cannot be held; use dense gradients")

    def _advance(self, due: list[bool], counts: list[int], taken: dict[Tensor, Tensor], given: dict[str, Any]) -> None:
        """Step the levels that are due with all they have, then hold of the others what is taken in."""
        levels = list(zip(self.param_groups, due, counts, strict=True))
        before = {p: p.grad for p in self._params()}
        try:
            for group, now, count in levels:
                for p in group["params"]:
                    p.grad = self._total(p, taken.get(p), count) if now else None
            if any(due):
                self.optimizer.step(**given)
        finally:
            for p, g in before.items():
                p.grad = g
        # a step that was refused has not come here: nothing is held that it did not take
        for group, now, count in levels:
            group[HELD] = 0 if now else count
            for p in group["params"]:
                if now:
                    self._sums.pop(p, None)
                elif p in taken:
                    self._sums[p] = self._sum(p, taken[p])

    def _sum(self, p: Tensor, g: Tensor) -> Tensor:
        """What is held of a weight, with a gradient."""
        wide = g.to(torch.promote_types(g.dtype, torch.float32))
        return self._sums[p] + wide if p in self._sums else wide.clone()

    def _total(self, p: Tensor, g: Tensor | None, count: int) -> Tensor | None:
        """What a weight steps with; None if there is nothing."""
        if p not in self._sums and (g is None or count == 1):
            return g
        total = self._sums[p] if g is None else self._sum(p, g)
        return (total / count if self.reduction == "mean" else total).to(p.dtype)

    def _params(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's, which has periods and phases in its groups, and the sums that are held."""
        sums = {i: self._sums[p] for i, p in enumerate(self._params()) if p in self._sums}
        return {"optimizer": self.optimizer.state_dict(), "sums": sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a state was saved.

        Raises:
            ValueError: a state of something else, or sums that do not fit the weights; nothing has changed.
        """
        if set(state_dict) != {"optimizer", "sums"}:
            raise ValueError(f"CMS: a state_dict has 'optimizer' and 'sums', this one has {sorted(state_dict)}")
        params, sums = list(self._params()), state_dict["sums"]
        for i, total in sums.items():
            if i >= len(params) or params[i].shape != total.shape:
                here = tuple(params[i].shape) if i < len(params) else "no weight"
                raise ValueError(f"CMS: the sum of parameter {i} has shape {tuple(total.shape)}, here is {here}")
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self._sums = {params[i]: total.to(params[i].device, copy=True) for i, total in sums.items()}


def _periods(groups: Sequence[dict[str, Any]], given: int | Sequence[int] | None) -> list[int]:
    """The periods of all groups, checked."""
    if given is None:
        missing = [i for i, group in enumerate(groups) if PERIOD not in group]
        if missing:
            raise ValueError(f"CMS: group {missing[0]} has no period; give it {PERIOD}=, a whole number of steps >= 1")
        found = [group[PERIOD] for group in groups]
    else:
        found = list(given) if isinstance(given, Sequence) else [given] * len(groups)
        if len(found) != len(groups):
            raise ValueError(f"CMS: periods has {len(found)} numbers for {len(groups)} groups")
    return [whole(f"the period of group {i}", period, "CMS") for i, period in enumerate(found)]
