"""Handwritten digits: scikit-learn's 1,797 images of 8 x 8 pixels, for a convolutional net and a vision transformer.

The images are shuffled once, the same way always, and cut into 1,077 for training, 360 for validation and 360 for
the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyak.lab.errors import require
from polyak.lab.problems import Problem

BATCH = 64
SIZES = {"train": 1077, "validation": 360, "test": 360}

Data = dict[str, tuple[Tensor, Tensor]]
Batch = tuple[Tensor, Tensor]


def _splits() -> Data:
    digits = require("sklearn.datasets").load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16 - 0.5
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    cuts = dict(zip(SIZES, order.split(list(SIZES.values())), strict=True))
    return {split: (images[rows], labels[rows]) for split, rows in cuts.items()}


def _problem(name: str, model: Callable[[], nn.Module], steps: int, target: float, description: str) -> Problem:
    data = _splits()

    def train_batches(seed: int) -> Iterator[Batch]:
        images, labels = data["train"]
        generator = torch.Generator().manual_seed(seed)
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH)[:-1]:  # whole batches only
            yield images[rows], labels[rows]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def evaluate(model: nn.Module, split: str) -> float:
        images, labels = data[split]
        right: Tensor = model(images).argmax(dim=1) == labels
        return right.double().mean().item()

    return Problem(
        name=name,
        build_model=lambda seed: model(),
        train_batches=train_batches,
        loss=loss,
        evaluate=evaluate,
        metric="accuracy",
        higher_is_better=True,
        target=target,
        steps=steps,
        description=description,
    )


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


def cnn() -> Problem:
    """A small convolutional net."""

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )

    text = "A convolutional net of 22 thousand parameters on scikit-learn's handwritten digits (8 x 8 pixels)."
    return _problem("digits-cnn", model, steps=200, target=0.97, description=text)


def vit() -> Problem:
    """A tiny vision transformer."""
    text = "A vision transformer of 18 thousand parameters on scikit-learn's handwritten digits (8 x 8 pixels)."
    return _problem("digits-vit", _VisionTransformer, steps=400, target=0.95, description=text)
