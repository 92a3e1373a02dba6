"""Handwritten digits: scikit-learn's 1,797 images of 8 x 8 pixels, for four problems.

The images are shuffled once, the same way always, and cut into 1,077 for training, 360 for validation and 360 for
the test.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyak.lab.builtin.common import CLASSES, Data, Task, divide, on_rows
from polyak.lab.errors import require
from polyak.lab.problems import Problem

BATCH = 64
SIZES = {"train": 1077, "validation": 360, "test": 360}
WRONG = 0.3  # the share of training labels that are wrong in noisy-digits
HEADS = {"digit": 10, "parity": 2, "side": 2}  # of multitask-digits, with their classes


def splits() -> Data:
    """Images from -1/2 to 1/2 and labels from 0 to 9."""
    digits = require("sklearn.datasets").load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16 - 0.5
    return divide((images, torch.tensor(digits.target, dtype=torch.int64)), SIZES)


def mislabelled(labels: Tensor) -> Tensor:
    """The labels, of which the share ``WRONG``, drawn the same way always, are replaced by another digit."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(labels), generator=generator)[: round(WRONG * len(labels))]
    labels = labels.clone()
    labels[rows] = (labels[rows] + torch.randint(1, 10, rows.shape, generator=generator)) % 10
    return labels


def answers(images: Tensor, labels: Tensor) -> Tensor:
    """The classes of an image for each head: the digit, whether it is odd, whether the left half holds more ink."""
    left, right = images.chunk(2, dim=-1)
    return torch.stack([labels, labels % 2, (left.sum((1, 2, 3)) > right.sum((1, 2, 3))).long()], dim=1)


def _summed_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    heads = zip(outputs.split(list(HEADS.values()), dim=1), targets.unbind(dim=1), strict=True)
    return torch.stack([F.cross_entropy(logits, wanted) for logits, wanted in heads]).sum()


def _share_right(outputs: Tensor, targets: Tensor) -> Tensor:
    chosen = [logits.argmax(dim=1) for logits in outputs.split(list(HEADS.values()), dim=1)]
    return (torch.stack(chosen, dim=1) == targets).double().mean(dim=1)


SEVERAL_CLASSES = Task("mean accuracy of three heads", True, _summed_loss, _share_right)


class _Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class _VisionTransformer(nn.Module):
    """Patches of 2 x 2 pixels, learned positions, mean pooling."""

    def __init__(self, width: int = 32, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(dim=1))
        return logits


def _convolutional(outputs: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.ReLU(),
        nn.Linear(32, outputs),
    )


def cnn() -> Problem:
    """A small convolutional net."""
    text = "A convolutional net of 22 thousand parameters on scikit-learn's handwritten digits (8 x 8 pixels)."
    return on_rows(
        "digits-cnn", splits(), CLASSES, _convolutional, batch=BATCH, steps=200, target=0.97, description=text
    )


def vit() -> Problem:
    """A tiny vision transformer."""
    text = "A vision transformer of 18 thousand parameters on scikit-learn's handwritten digits (8 x 8 pixels)."
    return on_rows(
        "digits-vit", splits(), CLASSES, _VisionTransformer, batch=BATCH, steps=400, target=0.93, description=text
    )


def noisy() -> Problem:
    """The convolutional net, trained on labels of which some are wrong and judged on right ones."""
    data = splits()
    images, labels = data["train"]
    data["train"] = images, mislabelled(labels)
    text = (
        f"The convolutional net of digits-cnn with {WRONG:.0%} of the training labels wrong, trained long enough to "
        "learn them by heart; validation and test labels are right."
    )
    return on_rows("noisy-digits", data, CLASSES, _convolutional, batch=BATCH, steps=600, target=0.92, description=text)


def multitask() -> Problem:
    """One net with three heads and one loss."""
    data = {split: (images, answers(images, labels)) for split, (images, labels) in splits().items()}
    text = (
        "A convolutional net with three heads on the handwritten digits: which digit it is, whether it is odd, and "
        "which half of the image holds more ink; the loss is the sum of the three."
    )
    return on_rows(
        "multitask-digits",
        data,
        SEVERAL_CLASSES,
        lambda: _convolutional(sum(HEADS.values())),
        batch=BATCH,
        steps=400,
        target=0.97,
        description=text,
    )
