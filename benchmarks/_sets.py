"""The parameter sets of the benchmarks: shapes as in real models, random gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ParameterSet:
    """Parameters by name; their gradients, in the same order, stay the same in all steps."""

    name: str
    params: dict[str, torch.nn.Parameter]
    grads: list[Tensor]

    @property
    def elements(self) -> int:
        """Elements of all parameters."""
        return sum(p.numel() for p in self.params.values())

    def restore(self) -> None:
        """Hand the gradients out again: some libraries take ``p.grad`` away."""
        for p, g in zip(self.params.values(), self.grads, strict=True):
            p.grad = g


def medium(width: int = 512) -> Iterator[tuple[str, Shape]]:
    """A small vision transformer with an embedding: about 17 M elements in 97 tensors."""
    yield "token_embed.weight", (4 * width, width)
    yield "pos_embed", (width // 2, width)
    yield "cls_token", (1, 1, width)
    for i in range(5):
        for norm in ("norm1", "norm2"):
            yield f"{i}.{norm}.weight", (width,)
            yield f"{i}.{norm}.bias", (width,)
        for matrix in ("q", "k", "v", "out"):
            yield f"{i}.{matrix}.weight", (width, width)
            yield f"{i}.{matrix}.bias", (width,)
        yield f"{i}.up.weight", (4 * width, width)
        yield f"{i}.up.bias", (4 * width,)
        yield f"{i}.down.weight", (width, 4 * width)
        yield f"{i}.down.bias", (width,)
        yield f"{i}.scale1", (width,)
        yield f"{i}.scale2", (width,)
    yield "norm.weight", (width,)
    yield "norm.bias", (width,)
    yield "head.weight", (100, width)
    yield "head.bias", (100,)


MIXED: tuple[Shape, ...] = (
    (16,), (64,), (16, 16, 3, 3), (64,), (128,), (32, 16, 3, 3), (256,), (64, 1, 3, 3), (512,), (24, 24), (1024,),
    (64, 32), (2048,), (48, 48), (32,), (96, 16), (64,), (12, 64), (1,), (32, 32),
)  # fmt: skip


def small(repeats: int = 50) -> Iterator[tuple[str, Shape]]:
    """Convolutions, small matrices and vectors of twenty shapes: about 1 M elements in 1,000 tensors."""
    for i in range(repeats):
        for j, shape in enumerate(MIXED):
            yield f"{i}.{j}", shape


def large(width: int = 1024) -> Iterator[tuple[str, Shape]]:
    """The matrices of a larger model, and few vectors: about 100 M elements in 30 tensors."""
    for i in range(16):
        yield f"{i}.mlp", ((width, 4 * width) if i % 2 else (4 * width, width))
    for i in range(7):
        yield f"{i}.attention", (2 * width, 2 * width)
    yield "project", (2 * width, width)
    yield "out", (width, width)
    for i in range(5):
        yield f"{i}.norm", (4 * width,)


def matrices(width: int = 256) -> Iterator[tuple[str, Shape]]:
    """The large set at a quarter of its width, 6 M elements: a step of a matrix method there takes a 64th."""
    return large(width)


SHAPES = {"medium": medium, "small": small, "large": large, "matrices": matrices}
QUICK = {"medium": 32, "small": 3, "large": 32, "matrices": 32}
TITLES = {
    "medium": "a small transformer",
    "small": "many small tensors",
    "large": "few large matrices",
    "matrices": "few matrices",
}


def make(name: str, device: str, quick: bool = False) -> ParameterSet:
    """A parameter set with weights and gradients drawn from a fixed seed; ``quick`` makes a miniature of it."""
    generator = torch.Generator().manual_seed(0)
    shapes = SHAPES[name](QUICK[name]) if quick else SHAPES[name]()
    params, grads = {}, []
    for label, shape in shapes:
        params[label] = torch.nn.Parameter(torch.randn(shape, generator=generator).mul_(0.02).to(device))
        grads.append(torch.randn(shape, generator=generator).mul_(0.01).to(device))
    return ParameterSet(name, params, grads)
