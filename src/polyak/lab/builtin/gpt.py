"""A byte-level GPT, and the problem of fitting it to a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyak.lab.builtin.common import device_of
from polyak.lab.problems import Problem

CONTEXT, HEADS = 128, 4
EVALUATED, CHUNK = 64, 8  # windows of a split, and how many of them at a time


class _Block(nn.Module):
    """A pre-norm transformer block that sees only the past."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        mixed: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return mixed


class GPT(nn.Module):
    """256 symbols, learned positions."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.bytes, self.positions = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):  # both add to the residual stream
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * depth))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.bytes(tokens) + self.positions.weight[: tokens.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def small_gpt() -> nn.Module:
    """One of 140 thousand parameters, for seconds instead of a minute."""
    return GPT(width=64, depth=2)


def on_text(
    name: str,
    texts: Mapping[str, Tensor],
    model: Callable[[], nn.Module],
    *,
    batch: int,
    steps: int,
    target: float | None,
    description: str,
) -> Problem:
    """The problem of predicting the next byte; ``texts`` holds the bytes of each split."""

    def windows(split: str, count: int, generator: torch.Generator) -> Tensor:
        text = texts[split]
        starts = torch.randint(len(text) - CONTEXT, (count, 1), generator=generator)
        return text[starts + torch.arange(CONTEXT + 1)].long()

    def train_batches(seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield windows("train", batch, generator)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def evaluate(model: nn.Module, split: str) -> float:
        generator = torch.Generator().manual_seed(0)  # the same windows always
        place = device_of(model)
        chunks = [windows(split, CHUNK, generator).to(place) for _ in range(EVALUATED // CHUNK)]
        losses = [loss(model, chunk).item() for chunk in chunks]
        return sum(losses) / len(losses) / math.log(2)

    return Problem(
        name=name,
        build_model=lambda seed: model(),
        train_batches=train_batches,
        loss=loss,
        evaluate=evaluate,
        metric="bits per byte",
        higher_is_better=False,
        target=target,
        steps=steps,
        description=description,
    )
