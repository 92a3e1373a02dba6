"""How often `make demo` says the same, were it done again with other trials and other seeds.

    python benchmarks/lab_demo.py [--repeats 10] [--workers N] [--store FILE] [--json FILE] [--quick]

Every repeat is the whole demo with another `--tuning-seed`: other settings are tried on other seeds, and other seeds
judge. Counts how often the most frequent recommendation was given, and how often each method's most frequent call.
What is done is in the store, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import _measure

from polyak import lab
from polyak.lab.planning import METHODS

RESULTS = Path(__file__).parent / "results" / "lab_demo.json"
PROBLEM = "digits-cnn"
LESS = {"methods": ("adamw", "sgd"), "trials": 2, "seeds": 2, "steps": 5}  # for a test of this script


def main() -> None:
    """Repeat, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--store", type=Path, default=Path("build/lab_demo.db"))
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="two methods, five steps: a test of this script")
    args = parser.parse_args()
    args.store.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for tuning_seed in range(args.repeats):
        rows.append(repeat(tuning_seed, args))
        print(json.dumps(rows[-1]), flush=True)
        args.json.write_text(
            json.dumps({"machine": _measure.machine("cpu"), "repeats": rows, **agreement(rows)}, indent=1)
        )
    print(json.dumps(agreement(rows), indent=1))


def repeat(tuning_seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One demo: what it recommends, and what it calls each method."""
    begin = time.perf_counter()
    options: dict[str, Any] = LESS if args.quick else {"methods": METHODS}
    found = lab.compare(PROBLEM, store=args.store, workers=args.workers, tuning_seed=tuning_seed, **options)
    said = found.verdict()[PROBLEM]
    others = {name: one for name, one in said["methods"].items() if name != said["reference"]}
    return {
        "tuning_seed": tuning_seed,
        "sentence": found.report.problems[0].sentence,
        "best": said["best"],
        "calls": {name: one["call"] for name, one in others.items()},
        "differences": {name: one["difference"] for name, one in others.items()},
        "seconds": round(time.perf_counter() - begin, 1),
    }


def agreement(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many repeats gave the most frequent recommendation and, for each method, its most frequent call."""
    best, times = Counter(row["best"] for row in rows).most_common(1)[0]
    calls = {m: Counter(row["calls"][m] for row in rows).most_common(1)[0] for m in rows[0]["calls"]}
    return {"of": len(rows), "best": [best, times], "calls": calls}


if __name__ == "__main__":
    main()
