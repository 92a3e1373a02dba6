"""What every auxiliary network is: a loss for a block that sees nothing of the blocks after it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from polyak.local.listing import Layers

Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """What the losses of one iteration are computed from.

    Attributes:
        inputs: the input of the whole network.
        targets: what the criterion compares with.
        criterion: ``criterion(logits, targets)``, a scalar.
    """

    inputs: Tensor
    targets: Tensor
    criterion: Criterion


@dataclass(frozen=True)
class Site:
    """Where an auxiliary network is to stand.

    Attributes:
        block: the block :math:`j` that it serves, from 1.
        num_blocks: :math:`K`; the last block has no auxiliary network.
        cut: number :math:`c_j` of layers before it.
        x: a small batch of the block's output.
        inputs: the same batch at the input of the network.
        outputs: that batch after the stem (the input, if there is none) and after every layer: ``outputs[c]`` is the
            output of the ``c``-th layer.
        num_outputs: outputs of the network's classifier.
        layers: the whole network.
    """

    block: int
    num_blocks: int
    cut: int
    x: Tensor
    inputs: Tensor
    outputs: tuple[Tensor, ...]
    num_outputs: int
    layers: Layers

    @property
    def next_layer(self) -> nn.Module:
        """:math:`s_j`, the first layer of the next block.

        Raises:
            ValueError: if the next block has no layer before the head, or that layer no parameters.
        """
        if self.cut == len(self.layers.layers):
            raise ValueError(
                f"block {self.block + 1} has no layer before the head whose weights could be averaged; cut earlier, or "
                "give the block as a Sequential of layers and head"
            )
        layer = self.layers.layers[self.cut]
        if not any(True for _ in layer.parameters()):
            raise ValueError(
                f"the first layer of block {self.block + 1}, a {type(layer).__name__}, has no weights to average"
            )
        return layer


class AuxiliaryNet(nn.Module, ABC):
    """The auxiliary network of one block; dropped after training.

    An iteration calls, in this order: :meth:`begin`, the forward pass and :meth:`loss`, backward, and, when an
    optimizer step follows and the gradients are finite, :meth:`finish`.
    """

    needs_inputs: bool = False
    """Whether the loss uses the input of the whole network."""

    def begin(self) -> None:
        """At the start of an iteration; nothing by default."""
        return

    @abstractmethod
    def loss(self, said: Any, batch: Batch) -> Tensor:
        """The local loss, a scalar, of what the forward pass said of the block's output."""

    def finish(self) -> None:
        """When the gradients are there and the step is to follow; nothing by default."""
        return

    def sources(self) -> list[Tensor]:
        """Weights of the next block that :meth:`finish` reads; none by default."""
        return []

    def check(self, batch: Batch) -> None:
        """Refuse a batch that the loss cannot be computed for, with ``ValueError``, before anything runs."""
        return


class Auxiliary(ABC):
    """A recipe for the auxiliary networks of all blocks. Subclass it for one of your own; see :class:`Greedy`."""

    @abstractmethod
    def build(self, site: Site) -> AuxiliaryNet:
        """The auxiliary network for one block.

        Balanced cuts call it for every cut that is possible, as if for block 1, to learn what its activations need.
        """


class Classifier(AuxiliaryNet):
    """An auxiliary network that predicts the targets, judged by the same criterion as the network itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Output of the block to logits."""
        return cast(Tensor, self.net(x))

    def loss(self, said: Tensor, batch: Batch) -> Tensor:
        """See :class:`AuxiliaryNet`."""
        return batch.criterion(said, batch.targets)


class GlobalPool(nn.Module):
    """Mean over the pixels of (N, C, H, W) or the tokens of (N, T, C); (N, C) is left alone."""

    def forward(self, x: Tensor) -> Tensor:
        """To (N, C)."""
        return x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x


def channels(x: Tensor, block: int) -> int:
    """Number of channels of an output of block ``block``.

    Raises:
        ValueError: if it is not (N, C, H, W), (N, T, C) or (N, C).
    """
    if x.ndim not in (2, 3, 4):
        raise ValueError(
            f"the output of block {block} must be (N, C, H, W), (N, T, C) or (N, C) for an auxiliary network, "
            f"got shape {tuple(x.shape)}"
        )
    return x.shape[1] if x.ndim == 4 else x.shape[-1]
