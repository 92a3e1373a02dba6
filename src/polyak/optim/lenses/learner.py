"""Supervised learning: a model seen through an optimiser, a loss, and a learning rate to close the wire."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polyak.declare import NON_NEGATIVE
from polyak.optim.lenses.lens import Lens, ParaLens, layer, without_parameter
from polyak.optim.lenses.optimisers import Optimiser
from polyak.optim.lenses.trees import Tree


def _alike(y: Tensor, guess: Tensor) -> None:
    if y.shape != guess.shape:
        raise ValueError(f"label and prediction must have one shape, got {tuple(y.shape)} and {tuple(guess.shape)}")


def squared_error() -> ParaLens:
    """``(y, guess) -> |y - guess|^2 / 2``: the label is the parameter."""

    def loss(y: Tensor, guess: Tensor) -> Tensor:
        _alike(y, guess)
        return 0.5 * (y - guess).square().sum()

    return layer(loss)


def cross_entropy() -> ParaLens:
    """``(y, guess) -> sum y (logsumexp(guess) - guess)``: y one-hot, the guess unnormalized."""

    def loss(y: Tensor, guess: Tensor) -> Tensor:
        _alike(y, guess)
        return (y * (guess.logsumexp(-1, keepdim=True) - guess)).sum()

    return layer(loss)


def learning_rate(lr: float = 0.01, times_loss: bool = False) -> Lens:
    """The end of the wire: whatever the loss, its change is ``-lr`` (with ``times_loss`` times the loss).

    Raises:
        ValueError: a negative lr.
    """
    if lr not in NON_NEGATIVE:
        raise ValueError(f"lr must be in {NON_NEGATIVE}, got {lr!r}")
    return Lens(lambda loss: None, lambda loss, _: -lr * (loss if times_loss else torch.ones_like(loss)))


@dataclass(frozen=True)
class Learner:
    """``model seen through optimiser >> loss >> cap``: one lens, whose way back is a step of training.

    Args:
        model: what is trained.
        optimiser: whose change, with a :func:`learning_rate` as cap, carries the lr and its sign: :func:`ascent`,
            :func:`ascent_momentum`, :func:`nesterov`, :func:`adagrad`, :func:`adam`.
        loss: with the label as parameter.
        cap: the end of the wire.
    """

    model: ParaLens
    optimiser: Optimiser
    loss: ParaLens
    cap: Lens

    def start(self, parameter: Tree) -> Tree:
        """State and parameter to begin with."""
        return self.optimiser.start(parameter)

    def predict(self, wire: Tree, x: Tree) -> Tree:
        """The model's value, at the parameter that the optimiser reads out."""
        return self.model.lens.get((self.optimiser.lens.get(wire), x))

    def change(self, y: Tree, wire: Tree, x: Tree) -> tuple[Tree, Tree]:
        """The new state and parameter, and the change that arrives at the input (which deep dreaming uses)."""
        whole = self.model.reparametrise(self.optimiser.lens) >> self.loss >> without_parameter(self.cap)
        (_, (_, moved)), of_x = whole.lens.put(((None, (y, wire)), x), None)
        return moved, of_x

    def step(self, y: Tree, wire: Tree, x: Tree) -> Tree:
        """State and parameter after one example."""
        return self.change(y, wire, x)[0]
