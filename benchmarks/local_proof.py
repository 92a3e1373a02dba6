"""The small proof of local learning: two digits side by side, to be added, by a network cut after every block.

Stem and 6 residual blocks of 8, 16, 16, 32, 32, 32 channels on 8 x 16 pixels; heads are mean pooling and one linear
map, so that what stands between block and head shows. "MAN" is EMA layer plus trained layer; the rows around it have
one of the two.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import torch
from _local import Data, train
from _local_report import interval
from _local_store import Store
from sklearn.datasets import load_digits
from torch import Tensor, nn

from polyak.local import MAN, AugLocal, BasicBlock, Greedy
from polyak.local.resnet import shortcut

RESULTS = Path(__file__).parent / "results" / "local_proof.jsonl"
METHODS = {
    "end-to-end": None,
    "greedy": Greedy(),
    "EMA only": MAN(Greedy(), variant="average"),
    "trained layer only": MAN(Greedy(), variant="trained"),
    "MAN": MAN(Greedy()),
    "AugLocal 1": AugLocal(1, pyramid_coeff=0.0),
    "AugLocal 2": AugLocal(2, pyramid_coeff=0.0),
    "AugLocal 3": AugLocal(3, pyramid_coeff=0.0),
}
WIDTHS = (8, 8, 16, 16, 32, 32, 32)


def pairs(x: Tensor, y: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures of two digits, and the last digit of their sum."""
    a, b = torch.randint(0, len(y), (2, count), generator=torch.Generator().manual_seed(seed))
    return torch.cat([x[a], x[b]], dim=3), (y[a] + y[b]) % 10


def task() -> Data:
    """6,000 pairs for training and 2,000 for the test, of different digits."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(found.images, dtype=torch.float32)[order, None] / 16, torch.tensor(found.target)[order]
    return Data("pairs", *pairs(x[500:], y[500:], 6000, 1), *pairs(x[:500], y[:500], 2000, 2))


def network() -> nn.Sequential:
    """The network; its first layer is the stem."""
    stem = [nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU(inplace=True)]
    blocks = []
    for a, b in pairwise(WIDTHS):
        stride = 1 if a == b else 2
        blocks.append(BasicBlock(a, b, stride, shortcut(a, b, stride)))
    made = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--store", type=Path, default=RESULTS)
    args = parser.parse_args()
    data, store, wanted = task(), Store(args.store), args.methods.split(",")
    for seed in range(args.seeds):
        for method in wanted:
            key = {"method": method, "seed": seed, "epochs": args.epochs}
            if not store.find(**key):
                torch.manual_seed(seed)
                cut = {} if METHODS[method] is None else {"cuts": (2, 3, 4, 5, 6, 7)}
                store.add(key, train(network(), METHODS[method], data, seed, args.epochs, 100, 0.1, **cut))
                print(json.dumps(store.rows[-1]), flush=True)
    for method in wanted:
        errors = [row["error"] for row in store.find(method=method, epochs=args.epochs)]
        print(f"{method:<20} {interval(errors):>12}  ({', '.join(f'{e:.1f}' for e in errors)})")


if __name__ == "__main__":
    main()
