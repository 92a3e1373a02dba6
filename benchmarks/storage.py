"""What a method loses, saves and costs when its memories are kept in fewer bytes.

    python benchmarks/storage.py [--methods adamw,lion] [--storages float32,int8] [--steps 400] [--seeds 2] [--quick]

Trains the built-in problem ``stdlib-lm`` with each method, once a storage and seed, from the same weights on the same
batches. Prints a table, and writes JSON and the loss curves as a picture. A storage that polyak does not have is
skipped, and said so.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import time
from pathlib import Path
from typing import Any

import _measure
import _storage_report
import torch
from torch import nn

from polyak import optim
from polyak.lab.problems import Problem, load

RESULTS = Path(__file__).parent / "results"
PROBLEM = "stdlib-lm"
STORAGES = ("float32", "bfloat16", "int8", "factored")
# The learning rates are those at which float32 trains well; what is asked is what storage does to that.
METHODS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 3e-3},
    "adan": {"lr": 3e-3},
    "lion": {"lr": 5e-4},
    "ademamix": {"lr": 2e-3},
    "adabelief": {"lr": 3e-3},
    "sgd": {"lr": 0.3, "momentum": 0.9},
}
SMOOTH = 20  # steps whose losses make one point of a curve
ROUNDS = 15


def main() -> None:
    """Train, measure, print, write."""
    args = arguments()
    problem = load(PROBLEM).problem
    rows = []
    for method in args.methods:
        storages = [name for name in args.storages if name in available(method, args.storages)]
        times = step_times(problem, method, storages, 2 if args.quick else ROUNDS)
        for storage in storages:
            for seed in range(args.seeds):
                row = {"method": method, "storage": storage, "seed": seed, "ms": times[storage]}
                rows.append({**row, **train(problem, method, storage, seed, args.steps)})
                print(f"{method} {storage} seed {seed}: loss {rows[-1]['loss']:.4f}", flush=True)
    print(_storage_report.table(rows))
    path = args.json or RESULTS / "storage.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"problem": PROBLEM, "steps": args.steps, "seeds": args.seeds, "methods": METHODS, "smooth": SMOOTH}
    text = {"machine": _measure.machine("cpu"), "options": options, "rows": rows}
    path.write_text(json.dumps(text, indent=1) + "\n")
    path.with_suffix(".svg").write_text(_storage_report.picture(rows, f"{PROBLEM}, means over {SMOOTH} steps"))
    print(f"written to {path} and {path.with_suffix('.svg').name}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--storages", type=lambda text: text.split(","), default=list(STORAGES))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/storage.json")
    parser.add_argument("--quick", action="store_true", help="a few steps: a test of this script")
    args = parser.parse_args()
    for name, known in (("methods", METHODS), ("storages", STORAGES)):
        wrong = [one for one in getattr(args, name) if one not in known]
        if wrong:
            parser.error(f"--{name}: {', '.join(wrong)}: choose from {', '.join(known)}")
    if args.quick:
        args.steps = min(args.steps, 4)
    return args


def available(method: str, storages: list[str]) -> list[str]:
    """The storages that polyak has for a method; "float32" is what it does when it is not asked."""
    found = []
    for storage in storages:
        try:
            build(method, nn.Linear(2, 2), storage)
            found.append(storage)
        except (TypeError, ValueError) as error:
            print(f"{method} {storage}: skipped ({str(error)[:100]})")
    return found


def build(method: str, model: nn.Module, storage: str) -> torch.optim.Optimizer:
    """The method on a model's weights with its memories kept so."""
    make = optim.get(method)
    asked = {"state_storage": storage}
    if storage == "float32" and "state_storage" not in inspect.signature(make).parameters:
        asked = {}
    return make(model.parameters(), **METHODS[method], **asked)


def train(problem: Problem, method: str, storage: str, seed: int, steps: int) -> dict[str, Any]:
    """One run: its loss curve, its validation metric and the bytes of its memories a parameter."""
    torch.manual_seed(seed)
    model = problem.build_model(seed)
    optimizer = build(method, model, storage)
    losses = []
    for _, batch in zip(range(steps), problem.train_batches(seed), strict=False):
        optimizer.zero_grad()
        loss = problem.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        metric = problem.evaluate(model.eval(), "validation")
    curve = [statistics.fmean(losses[i : i + SMOOTH]) for i in range(0, len(losses), SMOOTH)]
    return {"curve": curve, "loss": curve[-1], "metric": metric, "bytes": state_bytes(optimizer, model)}


def state_bytes(optimizer: torch.optim.Optimizer, model: nn.Module) -> float:
    """Bytes of all tensors in the optimizer's state, a parameter."""
    held = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))
    return held / sum(p.numel() for p in model.parameters())


def step_times(problem: Problem, method: str, storages: list[str], rounds: int) -> dict[str, float]:
    """Milliseconds of one step of every storage, interleaved, on the problem's weights with fixed gradients."""
    actions = {}
    for storage in storages:
        model = problem.build_model(0)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.01
        actions[storage] = build(method, model, storage).step
        start = time.perf_counter()
        for _ in range(8):
            if time.perf_counter() - start < 30:
                actions[storage]()
    seconds = _measure.interleaved(actions, lambda: None, "cpu", rounds, 20.0)
    return {storage: _measure.summary(found)["ms"] for storage, found in seconds.items()}


if __name__ == "__main__":
    main()
