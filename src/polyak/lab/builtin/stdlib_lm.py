"""A byte-level GPT of about one million parameters on the text of Python's own standard library.

Files, not lines, are divided between training, validation and test, so no text is in two of them. The text belongs
to the running interpreter: the versions in a run's key include Python's.
"""

from __future__ import annotations

import hashlib
import math
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyak.lab.problems import Problem

CONTEXT, BATCH, WIDTH, DEPTH, HEADS = 128, 8, 128, 5, 4
EVALUATION_BATCHES = 8
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__", "turtledemo"}


def split_of(name: str) -> str:
    """The split a file belongs to: 8 in 10 train, one validation, one test, by the digest of its name."""
    tenth = hashlib.sha256(name.encode()).digest()[0] % 10
    return {8: "validation", 9: "test"}.get(tenth, "train")


def files() -> dict[str, list[Path]]:
    """The files of each split, sorted by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    splits: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    for path in sorted([*root.glob("*.py"), *root.glob("*/*.py")]):
        name = path.relative_to(root).as_posix()
        generated = name.startswith("_sysconfigdata")  # differs from machine to machine
        if not generated and not SKIPPED.intersection(path.relative_to(root).parts):
            splits[split_of(name)].append(path)
    return splits


def _text(paths: list[Path]) -> Tensor:
    return torch.frombuffer(bytearray(b"\n".join(path.read_bytes() for path in paths)), dtype=torch.uint8)


class _Block(nn.Module):
    """A pre-norm transformer block that sees only the past."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        mixed: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return mixed


class _GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.positions = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(_Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):  # both add to the residual stream
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * DEPTH))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.bytes(tokens) + self.positions.weight[: tokens.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def language_model() -> Problem:
    """The byte-level GPT."""
    texts = {split: _text(paths) for split, paths in files().items()}

    def windows(split: str, generator: torch.Generator) -> Tensor:
        text = texts[split]
        starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=generator)
        return text[starts + torch.arange(CONTEXT + 1)].long()

    def train_batches(seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield windows("train", generator)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def evaluate(model: nn.Module, split: str) -> float:
        generator = torch.Generator().manual_seed(0)  # the same windows always
        losses = [loss(model, windows(split, generator)).item() for _ in range(EVALUATION_BATCHES)]
        return sum(losses) / len(losses) / math.log(2)

    return Problem(
        name="stdlib-lm",
        build_model=lambda seed: _GPT(),
        train_batches=train_batches,
        loss=loss,
        evaluate=evaluate,
        metric="bits per byte",
        higher_is_better=False,
        target=3.2,
        steps=400,
        description="A byte-level GPT of one million parameters on the source text of Python's standard library.",
    )
