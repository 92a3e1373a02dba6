"""Layer-wise second order against AdamW: state in bytes and time of a step, on a transformer and a conv net.

A line for each method and model, and benchmarks/results/second_order.json. Times are of whole training steps, forward
and backward pass included, and apart those that refresh the factors and those that do not: CPU time of one thread, so
that other work on the machine does not count, and the least of all rounds, in each of which all run once.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measure import machine
from torch import Tensor, nn

import polyak.optim

RESULTS = Path(__file__).parent / "results" / "second_order.json"
PERIOD = 10
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("adamw", {}),
    "mkor": ("mkor", {"inv_freq": PERIOD}),
    "singd dense": ("singd", {"T": PERIOD}),
    "singd diagonal": ("singd", {"T": PERIOD, "structures": ("diagonal", "diagonal")}),
    "singd hierarchical": ("singd", {"T": PERIOD, "structures": ("hierarchical15_15", "hierarchical15_15")}),
    "singd toeplitz": ("singd", {"T": PERIOD, "structures": ("triltoeplitz", "triutoeplitz")}),
    "ikfac dense": ("ikfac", {"T": PERIOD}),
    "sngd": ("sngd", {"T": PERIOD}),
}
QUIET = {"lr": 1e-5}


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm; queries, keys and values from one linear layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.before(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(mixed.transpose(1, 2).reshape(batch, length, width))
        result: Tensor = x + self.down(nn.functional.gelu(self.up(self.between(x))))
        return result


def transformer(width: int = 128, layers: int = 4, words: int = 256) -> tuple[nn.Module, Tensor, Tensor]:
    """Four blocks that read words, with a batch of 8 times 32."""
    torch.manual_seed(0)
    blocks = [Block(width, 4) for _ in range(layers)]
    model = nn.Sequential(nn.Embedding(words, width), *blocks, nn.LayerNorm(width), nn.Linear(width, words))
    text = torch.randint(words, (8, 33))
    return model, text[:, :-1], text[:, 1:]


def convolutional() -> tuple[nn.Module, Tensor, Tensor]:
    """Four convolutions and a linear layer, with a batch of 16 pictures of 32 by 32."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in ((3, 32), (32, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(a, b, 3, stride=1 + (a == b), padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return model, torch.randn(16, 3, 32, 32), torch.randint(10, (16,))


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor, Tensor]]] = {
    "transformer": transformer,
    "conv net": convolutional,
}


class Training:
    """A model with one optimizer, that makes training steps."""

    def __init__(self, make: Callable[[], tuple[nn.Module, Tensor, Tensor]], slug: str, **options: Any) -> None:
        self.model, self.x, self.y = make()
        self.optimizer = polyak.optim.create(slug, self.model, **options)
        self.refreshes = slug != "adamw"
        self.step()

    def step(self) -> None:
        """Forward, backward, step."""
        self.optimizer.zero_grad()
        out = self.model(self.x)
        nn.functional.cross_entropy(out.flatten(0, -2), self.y.flatten()).backward()
        self.optimizer.step()

    def turn(self, due: bool) -> None:
        """Have the next step refresh, or not."""
        if isinstance(self.optimizer, polyak.optim.LayerMethod):
            for layer in self.optimizer._layers:
                self.optimizer.state[layer.weight]["layer_step"] = torch.tensor(0.0 if due else 1.0)
            self.optimizer._listen()

    def bytes(self) -> float:
        """Bytes of state for each parameter."""
        return self.optimizer.state_bytes() / sum(p.numel() for p in self.model.parameters())


def least_ms(trainings: dict[str, Training], due: bool, rounds: int) -> dict[str, float]:
    """The least CPU milliseconds of a step of each, with a refresh or without."""
    order, found = random.Random(0), dict.fromkeys(trainings, float("inf"))
    for _ in range(rounds):
        for label in order.sample(list(trainings), len(trainings)):
            trainings[label].turn(due)
            start = time.process_time()
            trainings[label].step()
            found[label] = min(found[label], 1e3 * (time.process_time() - start))
    return found


def measure(rounds: int) -> list[dict[str, Any]]:
    """A row for each model and method."""
    rows = []
    for name, make in MODELS.items():
        trainings = {label: Training(make, slug, **QUIET, **h) for label, (slug, h) in METHODS.items()}
        refresh, between = (least_ms(trainings, due, rounds) for due in (True, False))
        for label, training in trainings.items():
            ms = {"refresh_ms": refresh[label], "between_ms": between[label]}
            mean_ms = refresh[label] / PERIOD + between[label] * (1 - 1 / PERIOD)
            rows.append({"model": name, "method": label, "bytes": round(training.bytes(), 2), "mean_ms": mean_ms, **ms})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = measure(args.rounds)
    found = {"machine": machine("cpu"), "period": PERIOD, "rounds": args.rounds, "rows": rows}
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
