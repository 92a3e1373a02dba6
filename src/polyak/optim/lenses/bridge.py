"""Between lenses and ``torch.optim``: any optimizer as a lens, and any optimiser lens as an optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from polyak.optim.engine.foreign import refuse_foreign
from polyak.optim.lenses.lens import Lens
from polyak.optim.lenses.optimisers import Optimiser
from polyak.optim.lenses.trees import Tree, leaves, rebuilt, tree_map


def from_optimizer(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Optimiser:
    """Any PyTorch optimizer, such as a chain of polyak's rules, as a lens; its change is the gradient.

    Args:
        make: makes one for a list of parameters: ``lambda ps: polyak.optim.Optimizer(ps, chain(...), lr=0.1)``.
    """

    def on(p: Tree) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        params = [nn.Parameter(leaf.detach().clone()) for leaf in leaves(p)]
        return params, make(params)

    def put(wire: Tree, change: Tree) -> Tree:
        state, p = wire
        tree_map(lambda _, c: c, p, change)  # refuses what does not fit
        params, optimizer = on(p)
        optimizer.load_state_dict(copy.deepcopy(state))
        for param, leaf in zip(params, leaves(change), strict=True):
            param.grad = leaf.detach().clone()
        optimizer.step()
        return optimizer.state_dict(), rebuilt(p, [param.detach() for param in params])

    return Optimiser(Lens(lambda wire: wire[1], put), lambda p: on(p)[1].state_dict())


class LensOptimizer(torch.optim.Optimizer):
    """An optimiser lens as a PyTorch optimizer.

    Between steps the parameters hold what the lens reads out: with :func:`nesterov` the point ahead, where the model is
    then differentiated. State and parameters proper are in each group's ``wire``, and so in ``state_dict()``.

    Args:
        params: parameters, named parameters or groups.
        optimiser: the lens.
        scale: what the gradient is multiplied by before it enters: ``-lr`` for lenses that add their change.
    """

    def __init__(self, params: ParamsT, optimiser: Optimiser, scale: float = 1.0) -> None:
        self._optimiser = optimiser
        super().__init__(params, {"scale": scale, "wire": None})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step; a parameter without gradient gets a change of zero.

        Raises:
            RuntimeError: a sparse gradient; nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = []
        for group in self.param_groups:
            wire = group["wire"]
            if wire is None:
                wire = self._start(group)
            changes = tuple(group["scale"] * _gradient(p) for p in group["params"])
            moved.append(self._optimiser.lens.put(wire, changes))
        for group, wire in zip(self.param_groups, moved, strict=True):
            group["wire"] = wire
            for p, value in zip(group["params"], self._optimiser.lens.get(wire), strict=True):
                p.copy_(value)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this lens.

        Raises:
            ValueError: another optimizer's, another lens's, or one of other parameters; names it, and nothing has
                changed.
        """
        refuse_foreign(self, state_dict, lambda saved, p: {})
        groups = [
            {**saved, "wire": saved["wire"] if saved["wire"] is None else _fitting(self._start(group), saved["wire"])}
            for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True)
        ]
        super().load_state_dict({**state_dict, "param_groups": groups})

    def _start(self, group: dict[str, Any]) -> Tree:
        return self._optimiser.start(tuple(p.detach().clone() for p in group["params"]))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_optimiser": self._optimiser}


def _gradient(p: Tensor) -> Tensor:
    if p.grad is None:
        return torch.zeros_like(p)
    if p.grad.layout is not torch.strided:
        raise RuntimeError("LensOptimizer takes dense gradients alone, got a sparse one")
    return p.grad


def _fitting(wanted: Any, found: Any) -> Any:
    """A wire on the devices and in the dtypes of another; refuses one of another form."""
    if isinstance(wanted, tuple) and isinstance(found, tuple) and len(wanted) == len(found):
        return tuple(map(_fitting, wanted, found))
    if isinstance(wanted, Tensor) and isinstance(found, Tensor) and wanted.shape == found.shape:
        return found.detach().to(wanted.device, wanted.dtype, copy=True)
    if type(wanted) is type(found) and not isinstance(wanted, (tuple, Tensor)):
        return found  # no tree: the state of an optimizer that was made a lens, which checks it itself
    raise ValueError(f"LensOptimizer: the state_dict's wire has {_form(found)} where this lens has {_form(wanted)}")


def _form(part: Any) -> str:
    if isinstance(part, Tensor):
        return f"a tensor of shape {tuple(part.shape)}"
    return f"a tuple of {len(part)}" if isinstance(part, tuple) else type(part).__name__
