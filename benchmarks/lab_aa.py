"""Twenty real comparisons of a method with itself: how often does the lab call a difference that is none?

    python benchmarks/lab_aa.py [--repeats 20] [--problem NAME] [--steps N] [--workers N] [--store FILE] [--json FILE]
    python benchmarks/lab_aa.py --quick                          # one repeat of four steps a run

Each repeat is ``polyak compare diabetes-regression --methods adamw --self-test 2`` with a tuning seed of its own: two
names of one method, each with its own ten trials and its own re-runs of the best three, judged on test seeds that no
other repeat has. It is judged at 5 seeds, the default, and at 8. A run is cut to 60 steps, so that all of it takes
minutes; that is long enough for the setting to matter. Runs are kept in the store, and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import _measure

from polyak.lab import Places, plan, run
from polyak.lab.campaign import Campaign

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "lab_aa.json"
STORE = ROOT / "build" / "lab_aa.db"
PROBLEM, METHOD = "diabetes-regression", "adamw"
TRIALS, SEEDS, STEPS = 10, (5, 8), 60
ALLOWED = 0.05


def main() -> None:
    """Compare, print, write."""
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "runs.db" if args.quick else args.store
        store.parent.mkdir(parents=True, exist_ok=True)
        rows = repeats(args, store)
    called = {seeds: sum(row["calls"][str(seeds)]["call"] in ("better", "worse") for row in rows) for seeds in SEEDS}
    for seeds, count in called.items():
        met = "met" if count <= ALLOWED * len(rows) else "MISSED"
        print(f"{met}: {seeds} seeds: {count} of {len(rows)} self-tests call a difference, {ALLOWED:.0%} allowed")
    same = sum(row["one_setting"] for row in rows)
    print(f"in {same} of {len(rows)} both names came to the same setting, and so to the same runs")
    report = {
        "machine": _measure.machine("cpu"), "problem": args.problem, "method": METHOD, "steps": args.steps,
        "trials": args.trials, "called": called, "one_setting": same, "repeats": rows,
    }  # fmt: skip
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {args.json}")


def repeats(args: argparse.Namespace, store: Path) -> list[dict[str, Any]]:
    """A row for each tuning seed. The problem is looked at once: it is the same for all."""
    planned = plan(args.problem, METHOD, args.trials, max(SEEDS), args.steps, self_test=2)
    rows = []
    for tuning_seed in range(args.repeats):
        rows.append(repeat(planned, tuning_seed, store, args.workers))
        calls = ", ".join(f"{call['call']} at {seeds} seeds" for seeds, call in rows[-1]["calls"].items())
        print(f"tuning seed {tuning_seed}: {calls}", flush=True)
    return rows


def repeat(planned: Campaign, tuning_seed: int, store: Path, workers: int) -> dict[str, Any]:
    """One comparison, judged at each number of seeds; the fewer seeds are the first of the more."""
    calls, settings = {}, {}
    names = list(planned.contenders.values())
    for seeds in sorted(SEEDS, reverse=True):
        asked = Campaign(planned.problems, names, planned.trials, seeds, planned.steps, tuning_seed=tuning_seed)
        found = next(iter(run(asked, store, Places(workers), timing=False).verdict().values()))["methods"]
        settings = {name: one["setting"] for name, one in found.items()}
        kept = ("call", "difference", "low", "high")
        calls[str(seeds)] = {name: found[names[1].name][name] for name in kept}
    one_setting = settings[names[0].name] == settings[names[1].name]
    return {
        "tuning_seed": tuning_seed,
        "calls": dict(sorted(calls.items())),
        "settings": settings,
        "one_setting": one_setting,
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--problem", default=PROBLEM)
    parser.add_argument("--steps", type=int, default=STEPS, help="of a run")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--store", type=Path, default=STORE, help="default: build/lab_aa.db")
    parser.add_argument("--json", type=Path, default=RESULTS, help="default: benchmarks/results/lab_aa.json")
    parser.add_argument("--quick", action="store_true", help="one repeat of four steps a run: a test of this script")
    args = parser.parse_args()
    args.trials = TRIALS
    if args.quick:
        args.repeats, args.steps, args.trials = 1, 4, 2
    return args


if __name__ == "__main__":
    main()
