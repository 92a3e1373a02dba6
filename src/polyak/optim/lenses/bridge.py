"""Between lenses and ``torch.optim``: any optimizer as a lens, and any optimiser lens as an optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from polyak.declare import NON_NEGATIVE
from polyak.optim.engine.foreign import refuse_foreign
from polyak.optim.lenses.lens import Lens
from polyak.optim.lenses.optimisers import Optimiser, remembered
from polyak.optim.lenses.trees import Tree, leaves, rebuilt, tree_map


@remembered
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
    then differentiated. State and parameters proper are in each group's ``wire``, and so in ``state_dict()``. What
    others do to the weights between steps is done to the parameters proper, which presupposes a lens that reads out its
    parameter, or that and something of the state.

    Schedulers drive each group's ``lr``. It multiplies the gradient, along with ``scale``; a lens with a learning rate
    of its own, as :func:`adam`, is given as the function that makes it of one, and made anew for each step::

        LensOptimizer(params, nesterov(0.9), scale=-1.0, lr=0.05)
        LensOptimizer(params, functools.partial(adam, betas=(0.9, 0.99)), scale=-1.0, lr=1e-3)

    The lr of a torch optimizer that was made a lens is in its state, and stays. What is pickled with the optimizer is
    the lens, see :class:`Optimiser`.

    Args:
        params: parameters, named parameters or groups.
        optimiser: the lens, or a function of lr that makes it.
        scale: what the gradient is multiplied by before it enters: -1 for lenses that add their change.
        lr: learning rate, >= 0; 1 for a lens that has one of its own.

    Raises:
        ValueError: an lr outside what is allowed, or other than 1 for a lens with one of its own.
    """

    def __init__(
        self,
        params: ParamsT,
        optimiser: Optimiser | Callable[[float], Optimiser],
        scale: float = 1.0,
        lr: float = 1.0,
    ) -> None:
        self._optimiser = optimiser
        super().__init__(params, {"scale": scale, "lr": lr, "wire": None})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; refuses an lr as the constructor does."""
        self._lens({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def _lens(self, group: dict[str, Any]) -> Optimiser:
        """The lens of a group at its lr."""
        lr = float(group["lr"])
        if lr not in NON_NEGATIVE:
            raise ValueError(f"LensOptimizer: lr must be in {NON_NEGATIVE}, got {group['lr']!r}")
        if not isinstance(self._optimiser, Optimiser):
            return self._optimiser(lr)
        if self._optimiser.has_lr and lr != 1:
            raise ValueError(
                f"LensOptimizer: lr must be 1 where the lens has its own, got {lr}; give the function that makes it"
            )
        return self._optimiser

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step; a parameter without gradient gets a change of zero.

        Raises:
            RuntimeError: a sparse gradient, or weights that were changed between steps in a way that the lens cannot
                take over; nothing has changed then.
            ValueError: an lr as the constructor refuses it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = []
        for group in self.param_groups:
            lens = self._lens(group)
            factor = group["scale"] * (float(group["lr"]) if lens is self._optimiser else 1.0)
            changes = tuple(factor * _gradient(p) for p in group["params"])
            wire = lens.lens.put(_followed(lens, group), changes)
            moved.append((wire, lens.lens.get(wire)))
        for group, (wire, values) in zip(self.param_groups, moved, strict=True):
            group["wire"] = wire
            for p, value in zip(group["params"], values, strict=True):
                p.copy_(value)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this lens.

        Raises:
            ValueError: another optimizer's, another lens's, or one of other parameters; names it, and nothing has
                changed.
        """
        refuse_foreign(self, state_dict, lambda saved, p: {})
        groups = []
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            lens, wire = self._lens(saved), saved["wire"]
            groups.append({**saved, "wire": None if wire is None else _fitting(_begun(lens, group), wire)})
        super().load_state_dict({**state_dict, "param_groups": groups})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_optimiser": self._optimiser}


def _begun(lens: Optimiser, group: dict[str, Any]) -> Tree:
    return lens.start(tuple(p.detach().clone() for p in group["params"]))


def _followed(lens: Optimiser, group: dict[str, Any]) -> Tree:
    """The wire, with what was done to the weights since it was read out."""
    if group["wire"] is None:
        return _begun(lens, group)
    state, proper = group["wire"]
    params, read = [p.detach() for p in group["params"]], lens.lens.get(group["wire"])
    if all(_is_at(p, r) for p, r in zip(params, read, strict=True)):
        return group["wire"]
    wire = state, tuple(_moved(*three) for three in zip(proper, read, params, strict=True))
    for i, (p, r) in enumerate(zip(params, lens.lens.get(wire), strict=True)):
        rtol = torch.finfo(p.dtype).eps ** 0.5
        size = max(map(_largest, (p, read[i], proper[i])))  # rounding of all that were added up
        if not torch.allclose(r.to(p.dtype), p, rtol=rtol, atol=rtol * size, equal_nan=True):
            raise RuntimeError(
                f"LensOptimizer: parameter {i} was changed between steps, and what its lens reads out cannot follow"
            )
    return wire


def _is_at(p: Tensor, read: Tensor) -> bool:
    """Whether a weight is what was read out for it; NaN is NaN."""
    there = read.to(p.dtype)
    return bool(((p == there) | (p.isnan() & there.isnan())).all())


def _largest(t: Tensor) -> float:
    """The largest size of a finite element."""
    return float(t.detach().nan_to_num(0.0, 0.0, 0.0).abs().max()) if t.numel() else 0.0


def _moved(proper: Tensor, read: Tensor, p: Tensor) -> Tensor:
    """The parameter proper, moved as the weight was since it was read out; exactly where it is what was read out."""
    if _is_at(p, read):
        return proper
    now = p.to(proper.dtype)
    return torch.where(proper == read, now, proper + (now - read))


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
