"""What does the lab itself cost beside the runs that it makes, and how long does it take to find them all made?

    python benchmarks/lab_overhead.py [--seconds 30] [--json FILE] [--quick]

Runs that compute for 30 s each are made by two workers. What is more than the sum of the runs is the lab's: once for
the look at the problem and the start of the workers, and with every run for handing it out and writing it down. Then a
comparison of 300 runs that take no time is made, and asked for again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import _measure
import torch

from polyak.lab import Problem, plan, run
from polyak.lab.campaign import Campaign
from polyak.lab.places import Places
from polyak.lab.spec import Record, RunSpec

RESULTS = Path(__file__).parent / "results" / "lab_overhead.json"
SECONDS = "LAB_OVERHEAD_SECONDS"  # tells the workers how long a run computes
WORKERS = 2
METHODS = ("sgd", "adamw", "adan", "lion", "muon", "cadamw")


def computing() -> Problem:
    """A loop that computes for some seconds, and reports every step."""

    def train(make_optimizer: Any, seed: int, report: Any, split: str) -> float:
        model = torch.nn.Linear(256, 256)
        optimizer = make_optimizer(model)
        begin, step = time.perf_counter(), 0
        while time.perf_counter() - begin < float(os.environ[SECONDS]):
            step += 1
            optimizer.zero_grad()
            loss = model(torch.ones(256, 256)).square().mean()
            loss.backward()
            optimizer.step()
            report(step, loss=loss)
        return 1.0 + seed

    return Problem(name="computing", train=train, metric="m", higher_is_better=False)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a run")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a few runs of 0.2 s: a test of this script")
    args = parser.parse_args()
    if args.quick:
        args.seconds = 0.2
    with tempfile.TemporaryDirectory() as folder:
        long = overhead(Path(folder) / "long.db", args.seconds)
        print("overhead", json.dumps(long), flush=True)
        counts = (2, 1) if args.quick else (20, 18)  # with re-runs 50 of each method
        again = resumed(Path(folder) / "many.db", *counts)
        print("resumed", json.dumps(again), flush=True)
    rows = {"machine": _measure.machine("cpu"), "overhead": long, "resumed": again}
    args.json.write_text(json.dumps(rows, indent=1) + "\n")


class Clock:
    """Takes the time that each run takes from being handed out to being written down."""

    def __init__(self) -> None:
        self.began_at: dict[str, float] = {}
        self.beyond: list[float] = []  # seconds beyond the run itself
        self.runs = 0.0

    def began(self, spec: RunSpec) -> None:
        """A run is handed out."""
        self.began_at[spec.key] = time.perf_counter()

    def progress(self, spec: RunSpec, step: int, steps: int | None) -> None:
        """A run goes on."""

    def ended(self, record: Record, here: bool) -> None:
        """A run is written down."""
        if here:
            took = record.detail["timing"]["total_seconds"]
            self.runs += took
            self.beyond.append(time.perf_counter() - self.began_at[record.key] - took)


def overhead(store: Path, seconds: float) -> dict[str, Any]:
    """Eight runs by two workers."""
    campaign, look = planned(seconds, METHODS[:2], 2, 2)
    clock, cpu, begin = Clock(), time.process_time(), time.perf_counter()
    run(campaign, store, Places(WORKERS), clock, timing=False)
    wall = time.perf_counter() - begin
    return {
        "runs": len(clock.beyond),
        "seconds_a_run": seconds,
        "workers": WORKERS,
        "wall_seconds": round(wall, 2),
        "share": round(1 - clock.runs / WORKERS / wall, 4),
        "seconds_a_first_run": round(median(clock.beyond[:WORKERS]), 3),  # which waits for its worker to start
        "seconds_a_later_run": round(median(clock.beyond[WORKERS:]), 3),
        "share_of_a_later_run": round(median(clock.beyond[WORKERS:]) / seconds, 4),
        "leader_cpu_seconds": round(time.process_time() - cpu, 2),
        "look_seconds": look,
    }


def resumed(store: Path, trials: int, seeds: int) -> dict[str, Any]:
    """A comparison of runs that take no time, made and asked for again."""
    campaign, _ = planned(0.001, METHODS, trials, seeds)
    begin = time.perf_counter()
    run(campaign, store, Places(WORKERS), timing=False)
    made = time.perf_counter() - begin
    again, look = planned(0.001, METHODS, trials, seeds)
    begin = time.perf_counter()
    run(again, store, Places(WORKERS), timing=False)
    found = time.perf_counter() - begin
    return {
        "runs": campaign.total,
        "made_seconds": round(made, 2),
        "look_seconds": look,
        "found_seconds": round(found, 2),
    }


def planned(seconds: float, methods: tuple[str, ...], trials: int, seeds: int) -> tuple[Campaign, float]:
    """A comparison whose runs take so long, and the seconds that the look at it took."""
    os.environ[SECONDS] = str(seconds)
    begin = time.perf_counter()
    campaign = plan(f"{__file__}:computing", methods, trials, seeds)
    return campaign, round(time.perf_counter() - begin, 2)


if __name__ == "__main__":
    main()
