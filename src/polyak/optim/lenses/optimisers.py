"""Optimisers as lenses: what a parameter is seen through."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ParamSpec

import torch
from torch import Tensor

from polyak.declare import HALF_OPEN_UNIT, NON_NEGATIVE, Interval
from polyak.memory.averages import ema, heavy_ball
from polyak.optim.lenses.lens import Lens
from polyak.optim.lenses.trees import Tree, tree_map, zeros

Given = ParamSpec("Given")


@dataclass(frozen=True)
class Optimiser:
    """A lens from ``(state, parameter)`` to the parameter that is used, and the state to start with.

    ``get`` reads the parameter out; ``put`` takes the change that arrives there, and returns the new pair. ``a @ b``
    optimises pairs of parameters, one by a and the other by b.

    Those of this package, and products of them, are pickled as the call that makes them; one of functions of your own
    is pickled as they are, which Python does for functions of a module, and not for lambdas.
    """

    lens: Lens
    initialize: Callable[[Tree], Tree]
    made: functools.partial[Optimiser] | None = field(default=None, repr=False, compare=False)

    def __matmul__(self, other: Optimiser) -> Optimiser:
        def crossed(wire: Tree) -> tuple[Tree, Tree]:
            (s, t), (p, q) = wire
            return (s, p), (t, q)

        def put(wire: Tree, change: Tree) -> Tree:
            return crossed(both.put(crossed(wire), change))

        both = self.lens @ other.lens
        lens = Lens(lambda wire: both.get(crossed(wire)), put)
        made = functools.partial(operator.matmul, self, other)
        return Optimiser(lens, lambda p: (self.initialize(p[0]), other.initialize(p[1])), made)

    def start(self, parameter: Tree) -> Tree:
        """The pair to begin with."""
        return self.initialize(parameter), parameter

    @property
    def has_lr(self) -> bool:
        """Whether it was made with a learning rate of its own."""
        if self.made is None:
            return False
        parts = (part for part in self.made.args if isinstance(part, Optimiser))
        return "lr" in inspect.signature(self.made.func).parameters or any(part.has_lr for part in parts)

    def __reduce__(self) -> tuple[Callable[..., Optimiser], tuple[object, ...]]:
        return (Optimiser, (self.lens, self.initialize)) if self.made is None else (_call, (self.made,))


def _call(made: functools.partial[Optimiser]) -> Optimiser:
    return made()


def remembered(make: Callable[Given, Optimiser]) -> Callable[Given, Optimiser]:
    """A function whose optimisers know the call that made them."""

    @functools.wraps(make)
    def made(*args: Given.args, **kwargs: Given.kwargs) -> Optimiser:
        return replace(make(*args, **kwargs), made=functools.partial(made, *args, **kwargs))

    return made


def _checked(name: str, value: float, allowed: Interval) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be in {allowed}, got {value!r}")


def _stateless(update: Callable[[Tensor, Tensor], Tensor]) -> Optimiser:
    def put(wire: Tree, change: Tree) -> Tree:
        return wire[0], tree_map(update, wire[1], change)

    return Optimiser(Lens(lambda wire: wire[1], put), lambda p: None)


def _with_velocity(move: Callable[[Tensor, Tensor], Tensor], update: Callable[[Tensor, Tensor], Tensor]) -> Optimiser:
    """A state like the parameter, moved by the change, that moves the parameter."""

    def put(wire: Tree, change: Tree) -> Tree:
        s, p = wire
        s = tree_map(move, s, change)
        return s, tree_map(update, p, s)

    return Optimiser(Lens(lambda wire: wire[1], put), zeros)


@remembered
def ascent() -> Optimiser:
    """``p <- p + p'``: the learning rate, and its sign, are in the change (the paper's basic update)."""
    return _stateless(torch.add)


@remembered
def exclusive_or() -> Optimiser:
    """``p <- p xor p'``, for Boolean circuits: integers or Booleans, addition modulo 2."""
    return _stateless(torch.bitwise_xor)


@remembered
def gradient_descent(lr: float = 0.01) -> Optimiser:
    """``p <- p - lr p'``."""
    _checked("lr", lr, NON_NEGATIVE)
    return _stateless(lambda p, change: p - lr * change)


@remembered
def momentum(lr: float = 0.01, gamma: float = 0.9) -> Optimiser:
    """``s <- gamma s + lr p'; p <- p - s``."""
    _checked("lr", lr, NON_NEGATIVE)
    _checked("gamma", gamma, HALF_OPEN_UNIT)
    return _with_velocity(lambda s, change: heavy_ball(s, change, gamma, lr), torch.sub)


@remembered
def ascent_momentum(gamma: float = 0.9) -> Optimiser:
    """``s <- gamma s + p'; p <- p + s``.

    Differs from the paper: it prints ``-gamma s``, and its code runs with -0.1, an anti-momentum.
    """
    _checked("gamma", gamma, HALF_OPEN_UNIT)
    return _with_velocity(lambda s, change: heavy_ball(s, change, gamma), torch.add)


@remembered
def nesterov(gamma: float = 0.9) -> Optimiser:
    """:func:`ascent_momentum` with another read-out: the model is used at ``p + gamma s``."""
    _checked("gamma", gamma, HALF_OPEN_UNIT)
    ball = ascent_momentum(gamma)
    ahead = Lens(lambda wire: tree_map(lambda s, p: p + gamma * s, *wire), ball.lens.put)
    return Optimiser(ahead, ball.initialize)


@remembered
def adagrad(lr: float = 0.01, delta: float = 1e-7) -> Optimiser:
    """``v <- v + p'^2; p <- p + lr p' / (delta + sqrt(v))``."""
    _checked("lr", lr, NON_NEGATIVE)
    _checked("delta", delta, NON_NEGATIVE)

    def put(wire: Tree, change: Tree) -> Tree:
        v = tree_map(lambda v, c: v + c * c, wire[0], change)
        return v, tree_map(lambda p, v, c: p + lr * c / (delta + v.sqrt()), wire[1], v, change)

    return Optimiser(Lens(lambda wire: wire[1], put), zeros)


@remembered
def adam(lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), delta: float = 1e-8) -> Optimiser:
    """``m, v <- averages of p' and p'^2; p <- p + lr m^ / (delta + sqrt(v^))``; hats divide by ``1 - beta^t``."""
    _checked("lr", lr, NON_NEGATIVE)
    _checked("delta", delta, NON_NEGATIVE)
    for i, beta in enumerate(betas):
        _checked(f"betas[{i}]", beta, HALF_OPEN_UNIT)

    def put(wire: Tree, change: Tree) -> Tree:
        (t, m, v), p = wire
        t = t + 1
        m = tree_map(lambda m, c: ema(m, c, 1 - betas[0]), m, change)
        v = tree_map(lambda v, c: ema(v, c * c, 1 - betas[1]), v, change)
        first, second = 1 - betas[0] ** t, 1 - betas[1] ** t
        return (t, m, v), tree_map(lambda p, m, v: p + lr * (m / first) / (delta + (v / second).sqrt()), p, m, v)

    def initialize(p: Tree) -> Tree:
        return torch.zeros((), dtype=torch.float64), zeros(p), zeros(p)

    return Optimiser(Lens(lambda wire: wire[1], put), initialize)
