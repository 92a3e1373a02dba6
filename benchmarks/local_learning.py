"""What does local learning cost, what does it save, and how well does it train?

    python benchmarks/local_learning.py                                  # memory and time, minutes
    python benchmarks/local_learning.py --parts cost,accuracy            # all of it, a night on two cores
    python benchmarks/local_learning.py --parts accuracy --methods man,dgl --blocks 8 --seeds 2 --epochs 3

Every result is stored as it comes; the same command goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _local import METHODS, Data, Step, cifar10, digits32, train
from _local_report import accuracy_table, cost_table, goals, picture
from _local_store import Store
from _measure import interleaved, machine, summary
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from polyak.local import ActivationMeter, Greedy, LocalNetwork, cifar_resnet

RESULTS = Path(__file__).parent / "results"


class Plan(NamedTuple):
    """What is run on a network."""

    blocks: tuple[int, ...]
    methods: tuple[str, ...]
    seeds: int
    lr: float


CONTROLS = ("end-to-end", "dgl", "man", "trained layer only", "EMA only", "man with linear head")
PLAN = {
    32: Plan((2, 4, 8, 16), tuple(METHODS), 5, 0.1),
    110: Plan((16,), CONTROLS, 1, 0.02),  # at 0.1 a network so deep does not get under way without a warm-up
}
Cell = tuple[int, int, str]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="cost", help="cost (memory and time), accuracy, or both with a comma")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--depths", default=",".join(map(str, PLAN)), help="of the ResNets, 6 n + 2")
    parser.add_argument("--blocks", help="numbers of blocks; by default 2,4,8,16 for ResNet-32 and 16 for ResNet-110")
    parser.add_argument("--seeds", type=int, help="how many; by default 5 for ResNet-32 and 1 for ResNet-110")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, help="by default 0.1 for ResNet-32 and 0.02 for ResNet-110")
    parser.add_argument("--cost-batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, help="a folder with CIFAR-10 in its binary format; digits without")
    parser.add_argument("--store", type=Path, default=RESULTS / "local_learning.jsonl")
    parser.add_argument("--json", type=Path, default=RESULTS / "local_learning.json")
    parser.add_argument("--plot", type=Path, default=RESULTS / "local_learning.svg")
    return parser.parse_args()


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    """Network, number of blocks and method of everything asked for; end-to-end training is one block."""
    for depth in map(int, args.depths.split(",")):
        plan = PLAN.get(depth, PLAN[32])
        wanted = [m for m in args.methods.split(",") if m in plan.methods]
        yield from ((depth, 1, m) for m in wanted if METHODS[m] is None)
        chosen = tuple(map(int, args.blocks.split(","))) if args.blocks else plan.blocks
        yield from ((depth, k, m) for k in chosen for m in wanted if METHODS[m] is not None)


def peak_and_flops(step: Step, x: Tensor, y: Tensor, device: str) -> tuple[int, int]:
    """Peak bytes of one iteration (what is saved for backward, or all that CUDA allocated), and its FLOPs."""
    with FlopCounterMode(display=False) as counter:
        step(x, y)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step(x, y)
        return torch.cuda.max_memory_allocated(), counter.get_total_flops()
    with ActivationMeter([*step.network.parameters(), *step.network.buffers()]) as meter:
        step(x, y)
    return meter.peak, counter.get_total_flops()


def costs(args: argparse.Namespace, store: Store) -> None:
    """Memory, arithmetic and time of every cell; the times of one network are taken in the same rounds."""
    key = {"part": "cost", "batch": args.cost_batch, "device": args.device}
    x = torch.rand(args.cost_batch, 3, 32, 32, device=args.device)
    y = torch.arange(args.cost_batch, device=args.device) % 10
    todo = [cell for cell in cells(args) if METHODS[cell[2]] is not None]
    for depth, blocks in dict.fromkeys((d, k) for d, k, _ in todo):
        names = [m for d, k, m in todo if (d, k) == (depth, blocks)]
        names = [m for m in names if not store.find(**key, depth=depth, blocks=blocks, method=m)]
        if not names:
            continue
        steps = {m: _step(depth, blocks, m, args.device, x) for m in ("end-to-end", *names)}
        found = {m: peak_and_flops(step, x, y, args.device) for m, step in steps.items()}
        actions = {m: (lambda step=step: step(x, y)) for m, step in steps.items()}
        seconds = interleaved(actions, lambda: None, args.device, args.rounds, 600)
        base = summary(seconds["end-to-end"])
        for m in steps:
            time = summary(seconds[m])
            peak, flops = found[m]
            ratios = {"memory_share": peak / found["end-to-end"][0], "flops_ratio": flops / found["end-to-end"][1]}
            count = 1 if m == "end-to-end" else blocks
            if store.find(**key, depth=depth, blocks=count, method=m):
                continue
            store.add(
                {**key, "depth": depth, "blocks": count, "method": m},
                {"memory": peak, "flops": flops, **time, **ratios, "time_ratio": time["ms"] / base["ms"]},
            )
            print(cost_table([store.rows[-1]]).splitlines()[1], flush=True)


def _step(depth: int, blocks: int, method: str, device: str, x: Tensor) -> Step:
    torch.manual_seed(0)
    recipe = METHODS[method]
    cut = {} if recipe is None else {"num_blocks": blocks, "example": x}
    return Step(cifar_resnet(depth).to(device), recipe, 0.01, **cut)


def accuracies(args: argparse.Namespace, store: Store, data: Data) -> None:
    """Test errors, all cells of one seed before the next."""
    device = torch.device(args.device)
    x, x_test = (t.to(device, memory_format=torch.channels_last) for t in (data.x, data.x_test))  # a quarter faster
    moved = Data(data.name, x, data.y.to(device), x_test, data.y_test.to(device))
    for seed in range(args.seeds or max(plan.seeds for plan in PLAN.values())):
        for depth, blocks, method in cells(args):
            key = _run_key(args, data, depth) | {"blocks": blocks, "method": method, "seed": seed}
            if seed >= (args.seeds or PLAN.get(depth, PLAN[32]).seeds) or store.find(**key):
                continue
            torch.manual_seed(seed)
            model = cifar_resnet(depth, data.classes).to(device, memory_format=torch.channels_last)
            recipe = METHODS[method]
            cut = {} if recipe is None else {"cuts": _same_cuts(depth, blocks, data.x[:2])}
            store.add(key, train(model, recipe, moved, seed, args.epochs, args.batch, key["lr"], **cut))
            print(json.dumps(store.rows[-1]), flush=True)


def _same_cuts(depth: int, blocks: int, example: Tensor) -> tuple[int, ...]:
    """Where all methods are cut, so that they differ only behind their blocks: balanced for linear heads."""
    with torch.random.fork_rng():
        return LocalNetwork(cifar_resnet(depth), blocks, Greedy(), example=example).cuts


def _run_key(args: argparse.Namespace, data: Data, depth: int) -> dict[str, Any]:
    lr = PLAN.get(depth, PLAN[32]).lr if args.lr is None else args.lr
    return {
        "part": "accuracy", "data": data.name, "epochs": args.epochs, "batch": args.batch, "lr": lr, "depth": depth,
    }  # fmt: skip


def main() -> None:
    args = arguments()
    unknown = set(args.methods.split(",")) - set(METHODS)
    if unknown:
        raise SystemExit(f"--methods must be of {', '.join(METHODS)}; got {', '.join(sorted(unknown))}")
    store = Store(args.store)
    data = digits32() if args.data is None else cifar10(args.data)
    if "cost" in args.parts.split(","):
        costs(args, store)
    if "accuracy" in args.parts.split(","):
        accuracies(args, store, data)
    order = {cell: i for i, cell in enumerate(cells(args))}
    found = store.find(part="cost", device=args.device, batch=args.cost_batch)
    spent = sorted((r for r in found if _cell(r) in order), key=lambda r: order[_cell(r)])
    made = [r for depth in map(int, args.depths.split(",")) for r in store.find(**_run_key(args, data, depth))]
    runs = sorted((r for r in made if _cell(r) in order), key=lambda r: order[_cell(r)])
    print(cost_table(spent), *goals(spent), accuracy_table(runs), sep="\n")
    report = {"machine": machine(args.device), "cost": spent, "accuracy": runs}
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    args.plot.write_text(picture(spent, runs, f"{data.name}, {args.epochs} epochs"))


def _cell(row: dict[str, Any]) -> Cell:
    return row["depth"], row["blocks"], row["method"]


if __name__ == "__main__":
    main()
