"""The gradient of any module's loss as a pure function, which can be mapped over clients and over records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from polyak.federated.rules.tensors import Tensors

Loss = Callable[[Tensor, Tensor], Tensor]


class Batch(NamedTuple):
    """Records of a client, and the seed of what the model draws (dropout) on them; None where it must draw nothing."""

    inputs: Tensor
    targets: Tensor
    seed: int | None = None


class ModelGradient:
    """The gradient of ``loss(model(inputs), targets)`` at any weights; see :class:`~polyak.federated.rules.Gradient`.

    The module is left as it is. Weights that require no gradient are constants, so a model of which little is trained
    sends little. Twice on one batch gives the same, dropout included.

    Args:
        model: the module, in the mode (training, evaluation) it should be in.
        loss: the mean loss of a batch of outputs and targets.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = model, loss

    def weights(self) -> Tensors:
        """The weights that are trained."""
        return {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}

    def buffers(self) -> Tensors:
        """The buffers that a checkpoint would hold."""
        saved = self.model.state_dict()
        return {n: b.detach() for n, b in self.model.named_buffers() if n in saved}

    def __call__(self, weights: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensors, Tensors]:
        """The mean gradient over a batch, and the buffers behind it."""
        with seeded(batch.seed):
            gradient, after = grad(self._loss, has_aux=True)(weights, buffers, batch.inputs, batch.targets)
        return gradient, after

    def per_record(self, weights: Tensors, buffers: Tensors, batch: Batch) -> Tensors:
        """The gradient of each record by itself, along a new first dimension."""
        if not len(batch.targets):
            return {n: w.new_zeros((0, *w.shape)) for n, w in weights.items()}

        def of_one(inputs: Tensor, target: Tensor) -> Tensors:
            one: Tensors = grad(self._loss, has_aux=True)(weights, buffers, inputs[None], target[None])[0]
            return one

        with seeded(batch.seed):
            found: Tensors = vmap(of_one, randomness="different")(batch.inputs, batch.targets)
        return found

    def _loss(self, weights: Tensors, buffers: Tensors, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensors]:
        held = {n: b.clone() for n, b in buffers.items()}
        return self.loss(functional_call(self.model, {**weights, **held}, (inputs,)), targets), held


@contextmanager
def rewound(generator: torch.Generator) -> Iterator[None]:
    """Where it fails in here, the generator is afterwards where it was."""
    before = generator.get_state()
    try:
        yield
    except BaseException:
        generator.set_state(before)
        raise


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Torch's generators started at a seed, and afterwards where they were."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
