"""How much less memory a training step needs when gradients are released in the backward pass.

    python benchmarks/release.py [--methods adamw,lion] [--width 1024] [--depth 12] [--quick]

One step (forward, backward, optimizer) of a stack of square layers whose weights outweigh what flows through them, as
in fine-tuning with a small batch: the most bytes held beyond weights and optimizer state, with and without
``polyak.optim.release_gradients``. Both end with the same weights. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import _measure
import torch
from torch import nn

from polyak import optim

RESULTS = Path(__file__).parent / "results"
BATCH = 8


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="sgd,adamw,adan,lion,muon")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--json", type=Path, default=RESULTS / "release.json")
    parser.add_argument("--quick", action="store_true", help="a small model: a test of this script")
    args = parser.parse_args()
    width, depth = (64, 4) if args.quick else (args.width, args.depth)
    rows = [measured(method, width, depth) for method in args.methods.split(",")]
    print(f"{depth} layers of {width} x {width}, weights {rows[0]['weights_mb']:.1f} MB; MB held beside them in a step")
    print(f"{'method':<10} {'as usual':>9} {'released':>9} {'ratio':>6}")
    for row in rows:
        ratio = row["released_mb"] / row["usual_mb"]
        print(f"{row['method']:<10} {row['usual_mb']:9.1f} {row['released_mb']:9.1f} {ratio:6.2f}")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    text = {"machine": _measure.machine("cpu"), "width": width, "depth": depth, "batch": BATCH, "rows": rows}
    args.json.write_text(json.dumps(text, indent=1) + "\n")
    print(f"written to {args.json}")


def measured(method: str, width: int, depth: int) -> dict[str, Any]:
    """Peaks of one method, after two steps that make its state."""
    usual, ends = peak(method, width, depth, released=False)
    released, others = peak(method, width, depth, released=True)
    for a, b in zip(ends, others, strict=True):
        torch.testing.assert_close(a, b)
    sizes = {"weights_mb": sum(p.nbytes for p in ends), "usual_mb": usual, "released_mb": released}
    return {"method": method} | {name: size / 2**20 for name, size in sizes.items()}


def peak(method: str, width: int, depth: int, released: bool) -> tuple[int, list[torch.Tensor]]:
    """Bytes held in the third step beyond those before it, and the weights that it ends with."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
    optimizer = optim.create(method, model, lr=1e-3)
    if released:
        optim.release_gradients(optimizer, model)
    x = torch.randn(BATCH, width)

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    step()
    return _measure.peak_extra(step, "cpu"), [p.detach() for p in model.parameters()]


if __name__ == "__main__":
    main()
