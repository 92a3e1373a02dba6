"""Throughput of blocks on two processes against one: the same cores, the same network, the same batches.

    python benchmarks/local_parallel.py --depth 32 --blocks 4 --threads 1

"one process" has ``--threads`` threads, as each of the two has; it is also timed with twice as many, which is what the
same cores do without a second process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _measure import machine

from polyak.local import MAN, BlockPipeline, LocalNetwork, cifar_resnet, local_backward

RESULTS = Path(__file__).parent / "results" / "local_parallel.json"
make_optimizer = partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--split", help="blocks of the first and of the second process, as 1,3")
    parser.add_argument("--rendezvous", help=argparse.SUPPRESS)
    return parser.parse_args()


def build(args: argparse.Namespace) -> tuple[LocalNetwork, list[Any]]:
    torch.manual_seed(0)
    x, y = torch.rand(args.batch, 3, 32, 32), torch.arange(args.batch) % 10
    network = LocalNetwork(cifar_resnet(args.depth), args.blocks, MAN(), example=x)
    return network, [(x, y)] * args.steps


def one_process(args: argparse.Namespace, threads: int) -> float:
    """Seconds a step."""
    torch.set_num_threads(threads)
    network, batches = build(args)
    optimizer = make_optimizer(list(network.trainable_parameters()))

    def run(these: list[Any]) -> None:
        for x, y in these:
            optimizer.zero_grad()
            local_backward(network, x, y)
            optimizer.step()

    run(batches[:2])
    start = time.perf_counter()
    run(batches)
    return (time.perf_counter() - start) / args.steps


def rank(args: argparse.Namespace) -> None:
    """One of two processes; the last prints seconds a step, as the slower end of the pipeline sees it."""
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo", f"file://{args.rendezvous}", rank=args.rank, world_size=2)
    network, batches = build(args)
    split = [int(n) for n in args.split.split(",")] if args.split else None
    pipeline = BlockPipeline(network, make_optimizer, split=split)
    first = args.rank == 0
    pipeline.run(batches[:2] if first else None)
    dist.barrier()
    start = time.perf_counter()
    pipeline.run(batches if first else None)
    dist.barrier()
    if first:
        print((time.perf_counter() - start) / args.steps)
    dist.destroy_process_group()


def two_processes(args: argparse.Namespace) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--rendezvous", str(Path(folder) / "meet")]
        env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        running = [
            subprocess.Popen([*command, "--rank", str(r)], stdout=subprocess.PIPE, text=True, env=env) for r in range(2)
        ]
        outputs = [p.communicate(timeout=1200)[0] for p in running]
        if any(p.returncode for p in running):
            raise SystemExit("a process of the pipeline failed")
    return float(outputs[0].split()[-1])


def main() -> None:
    args = arguments()
    if args.rank is not None:
        rank(args)
        return
    found = {"two processes": two_processes(args)}
    for threads in (args.threads, 2 * args.threads):
        found[f"one process, threads: {threads}"] = one_process(args, threads)
    for name, seconds in found.items():
        print(f"{name:<26} {1e3 * seconds:8.1f} ms a step  {args.batch / seconds:8.1f} images/s")
    settings = {name: getattr(args, name) for name in ("depth", "blocks", "batch", "steps", "threads", "split")}
    args.json.write_text(json.dumps({"machine": machine("cpu"), **settings, "seconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
