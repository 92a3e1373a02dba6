"""Lenses: maps with a way back, and lenses with parameters; both compose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polyak.optim.lenses.trees import Tree, leaves, rebuilt, tree_map, zeros


@dataclass(frozen=True)
class Lens:
    """A map ``get: a -> b`` with a way back, ``put: (a, change of b) -> change of a`` (arXiv:2103.01931).

    ``f >> g`` is f and then g; ``f @ g`` acts on pairs, f on the first and g on the second.
    """

    get: Callable[[Tree], Tree]
    put: Callable[[Tree, Tree], Tree]

    def __rshift__(self, other: Lens) -> Lens:
        return Lens(lambda a: other.get(self.get(a)), lambda a, c: self.put(a, other.put(self.get(a), c)))

    def __matmul__(self, other: Lens) -> Lens:
        def get(ab: Tree) -> Tree:
            return self.get(ab[0]), other.get(ab[1])

        def put(ab: Tree, changes: Tree) -> Tree:
            return self.put(ab[0], changes[0]), other.put(ab[1], changes[1])

        return Lens(get, put)


identity = Lens(lambda a: a, lambda a, change: change)
swap = Lens(lambda ab: (ab[1], ab[0]), lambda ab, change: (change[1], change[0]))


def _to_left(x: Tree) -> Tree:
    return (x[0], x[1][0]), x[1][1]


def _to_right(x: Tree) -> Tree:
    return x[0][0], (x[0][1], x[1])


associate_left = Lens(_to_left, lambda x, change: _to_right(change))
associate_right = Lens(_to_right, lambda x, change: _to_left(change))
first = Lens(lambda ab: ab[0], lambda ab, change: (change, zeros(ab[1])))
second = Lens(lambda ab: ab[1], lambda ab, change: (zeros(ab[0]), change))


@dataclass(frozen=True)
class ParaLens:
    """A lens from pairs ``(parameter, input)``.

    ``f >> g`` is f and then g; its parameter is ``(g's, f's)``, the outer first.
    """

    lens: Lens

    def __rshift__(self, other: ParaLens) -> ParaLens:
        f, g = self.lens, other.lens

        def get(x: Tree) -> Tree:
            (q, p), a = x
            return g.get((q, f.get((p, a))))

        def put(x: Tree, change: Tree) -> Tree:
            (q, p), a = x
            of_q, of_b = g.put((q, f.get((p, a))), change)
            of_p, of_a = f.put((p, a), of_b)
            return (of_q, of_p), of_a

        return ParaLens(Lens(get, put))

    def reparametrise(self, r: Lens) -> ParaLens:
        """The parameter seen through a lens, such as an optimiser: ``(r @ identity) >> lens``."""
        return ParaLens((r @ identity) >> self.lens)


def without_parameter(lens: Lens) -> ParaLens:
    """A lens as one whose parameter is the unit."""
    return ParaLens(Lens(lambda x: lens.get(x[1]), lambda x, change: (None, lens.put(x[1], change))))


def differentiable(function: Callable[[Tree], Tree]) -> Lens:
    """The reverse derivative of a map: ``put(x, y') = J(x)^T y'``.

    Args:
        function: of a tree, differentiable by torch, without side effects.

    Raises:
        ValueError: later, a change of another shape than the map's value; names both.
    """

    def put(x: Tree, change: Tree) -> Tree:
        value, pull, *_ = torch.func.vjp(lambda *parts: function(rebuilt(x, parts)), *leaves(x))
        return rebuilt(x, pull(tree_map(lambda _, c: c, value, change)))

    return Lens(function, put)


def layer(function: Callable[[Tree, Tensor], Tensor]) -> ParaLens:
    """A map of a parameter and an input, with its reverse derivative."""
    return ParaLens(differentiable(lambda x: function(x[0], x[1])))


def linear() -> ParaLens:
    """``(M, x) -> M x``."""
    return layer(lambda m, x: m @ x)


def bias() -> ParaLens:
    """``(b, x) -> b + x``, of one shape."""
    return layer(lambda b, x: tree_map(torch.add, b, x))


def activation(function: Callable[[Tensor], Tensor]) -> ParaLens:
    """An element-wise map, such as ``torch.sigmoid``."""
    return without_parameter(differentiable(function))


def dense(function: Callable[[Tensor], Tensor] = torch.sigmoid) -> ParaLens:
    """``function(W x + b)``; the parameter is ``(None, (b, W))``."""
    return linear() >> bias() >> activation(function)


def from_module(module: nn.Module) -> tuple[ParaLens, tuple[Tensor, ...]]:
    """A module as a lens, and its parameters, in order.

    The module must not change itself in a pass: put batch normalization into ``eval()``.
    """
    names = [name for name, _ in module.named_parameters()]

    def run(p: Any, x: Tensor) -> Tensor:
        value: Tensor = torch.func.functional_call(module, dict(zip(names, p, strict=True)), (x,))
        return value

    return layer(run), tuple(p.detach().clone() for p in module.parameters())
