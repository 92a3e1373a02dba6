"""N:M masks in the forward pass of a model: chosen, followed and made permanent."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from polyak.memory.sparsity import n_of_m
from polyak.optim.groups import roles_of
from polyak.optim.methods.step import MASKS, STEP
from polyak.optim.vocabulary.sparse import can_be_masked

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weight has its outputs first and its inputs second."""


class NMMask(nn.Module):
    """The parametrization: a weight times its N:M mask, straight-through, once it is ``active``."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.n, self.m, self.active = n, m, False

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight; its gradient is the weight's."""
        if not self.active:
            return weight
        plain = weight.detach()
        return weight + (plain * n_of_m(plain, self.n, self.m) - plain)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is assigned is the weight."""
        return weight

    def get_extra_state(self) -> dict[str, bool]:
        """Whether it is active, for the model's ``state_dict``."""
        return {"active": self.active}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        """The inverse of :meth:`get_extra_state`."""
        self.active = bool(state["active"])


class SparseLayers:
    """What :func:`sparsify` returns: the layers of a model whose weights are masked."""

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module], n: int, m: int) -> None:
        self.model, self.layers, self.n, self.m = model, layers, n, m
        self._followed: STEP | None = None

    def _masks(self) -> list[NMMask]:
        found = (module for layer in self.layers.values() for module in layer.modules())
        return [module for module in found if isinstance(module, NMMask)]

    @property
    def is_active(self) -> bool:
        """Whether the forward pass sees the masks."""
        return any(mask.active for mask in self._masks())

    def activate(self, on: bool = True) -> None:
        """Let the forward pass see the masks, or the dense weights: without :class:`STEP`, for SR-STE alone."""
        for mask in self._masks():
            mask.active = on

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for :class:`STEP`: the masked weights, and the other trainable parameters."""
        masked = {id(_original(layer)) for layer in self.layers.values()}
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        sparse = {"params": [e for e in named if id(e[1]) in masked], "sparse": True, "n": self.n, "m": self.m}
        dense = {"params": [e for e in named if id(e[1]) not in masked], "sparse": False}
        return [group for group in (sparse, dense) if group["params"]]

    def follow(self, optimizer: STEP) -> None:
        """Activate the masks with the phase of an optimizer, after its steps and when it loads a state.

        Raises:
            TypeError: an optimizer without phases.
        """
        if not isinstance(optimizer, STEP):
            raise TypeError(f"follow() takes a STEP optimizer, got {type(optimizer).__name__}; see activate()")

        self._followed = optimizer
        self._look(optimizer)
        optimizer.register_step_post_hook(self._look)
        optimizer.register_load_state_dict_post_hook(self._look)

    def _look(self, now: torch.optim.Optimizer, *_: Any) -> None:
        self.activate(now.param_groups[0].get("phase") == MASKS)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Hooks are not copied with an optimizer."""
        self.__dict__.update(state)
        if self._followed is not None:
            self.follow(self._followed)

    @torch.no_grad()
    def export(self) -> nn.Module:
        """Write the zeros into the weights and take the parametrizations off; the model, as it is deployed.

        With n = 2 and m = 4 ``torch.sparse.to_sparse_semi_structured`` takes the weights, on the devices that have it.
        Masks that were never active leave a model that was not trained for them, which is warned of.
        """
        if not self.is_active:
            warnings.warn(
                "the masks have not been active: the exported weights are those of a dense training, pruned by size",
                UserWarning,
                stacklevel=3,  # behind the decorator
            )
        self.activate()
        for layer in self.layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        self.layers = {}
        return self.model


def sparsify(model: nn.Module, n: int = 2, m: int = 4, layers: Sequence[str] | None = None) -> SparseLayers:
    """Let layers of a model see their weights through N:M masks, straight-through, once these are activated.

    ::

        layers = sparsify(model, 2, 4)
        optimizer = STEP(layers.groups(), lr=1e-3, total_steps=10_000)
        layers.follow(optimizer)
        ...                # train as ever
        layers.export()

    Args:
        model: the model; its weights stay the parameters that they are, under other names.
        n: weights that are kept of each ``m`` consecutive inputs, in 1 to m - 1.
        m: size of a group, at least 2.
        layers: names of linear or convolutional layers, or patterns of them. By default all whose weight is a hidden
            matrix, see :func:`polyak.optim.roles_of`; those whose inputs do not fall into groups are then left dense,
            with a warning.

    Raises:
        ValueError: ``n`` or ``m`` out of range, a pattern that matches no such layer, a layer that is masked already,
            a named layer whose inputs ``m`` does not divide, or nothing to mask. The model is then unchanged.
    """
    if not (isinstance(n, int) and isinstance(m, int) and 1 <= n < m):
        raise ValueError(f"sparsify: n must be in 1 to m - 1, got n = {n!r}, m = {m!r}")
    known: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}
    chosen = _hidden(model, known, m) if layers is None else _named(known, layers, m)
    if not chosen:
        raise ValueError(f"sparsify: there is no layer to mask in {type(model).__name__}; layers= names them")
    for name, layer in chosen.items():
        if any(isinstance(module, NMMask) for module in layer.modules()):
            raise ValueError(f"sparsify: {name} is masked already")
    for layer in chosen.values():
        parametrize.register_parametrization(layer, "weight", NMMask(n, m))
    return SparseLayers(model, chosen, n, m)


def _original(layer: nn.Module) -> Tensor:
    """The parameter behind the mask."""
    listed: Any = layer.parametrizations
    original: Tensor = listed["weight"].original
    return original


def _hidden(model: nn.Module, known: dict[str, nn.Module], m: int) -> dict[str, nn.Module]:
    named = dict(model.named_parameters())
    matrices = {id(named[name]) for name, role in roles_of(model).items() if role == "matrix"}
    hidden = {
        name: layer
        for name, layer in known.items()
        if isinstance(layer.weight, Tensor) and (id(layer.weight) in matrices or parametrize.is_parametrized(layer))
    }
    odd = [name for name, layer in hidden.items() if not can_be_masked(_shape(layer), m)]
    if odd:
        warnings.warn(
            f"sparsify: the inputs of {', '.join(odd)} do not fall into groups of m = {m}, these stay dense",
            UserWarning,
            stacklevel=3,
        )
    return {name: layer for name, layer in hidden.items() if name not in odd}


def _named(known: dict[str, nn.Module], patterns: Sequence[str], m: int) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        names = fnmatch.filter(known, pattern)
        if not names:
            raise ValueError(
                f"sparsify: no linear or convolutional layer matches {pattern!r}; there are {sorted(known)[:8]}"
            )
        found |= {name: known[name] for name in names}
    for name, layer in found.items():
        if not can_be_masked(_shape(layer), m):
            raise ValueError(
                f"sparsify: the inputs of {name} of shape {tuple(_shape(layer))} do not fall into groups of m = {m}"
            )
    return found


def _shape(layer: nn.Module) -> torch.Size:
    weight: Any = layer.weight
    shape: torch.Size = weight.shape
    return shape
