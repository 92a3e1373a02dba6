"""Every method of polyak on small problems, tuned alike: what is left of the papers' claims here?

    python benchmarks/reality_check/run.py [--problems A,B] [--methods A,B] [--workers N] [--quick]

The protocol is that of `polyak compare`: the same number of trials for each method in the range that it declares, the
best three run again on further seeds, then runs on the test split; AdamW is the reference. A night on two cores; what
is done is in the store, so the same command goes on where it was stopped. Writes benchmarks/results/reality_check.json
after each problem, and docs/reality-check.md from it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import _measure  # noqa: E402  a neighbour of this folder
import _page  # noqa: E402

from polyak import lab, optim  # noqa: E402

PROBLEMS = ("wine-mlp", "diabetes-regression", "deep-linear", "digits-cnn", "heavy-tail", "multitask-digits")
REFERENCE = "adamw"
TRIALS, SEEDS = 10, 8
RESULTS = HERE.parent / "results" / "reality_check.json"
PAGE = HERE.parents[1] / "docs" / "reality-check.md"


def main() -> None:
    """Run problem after problem, and write."""
    args = arguments()
    args.store.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(args.json.read_text())["problems"] if args.json.exists() else {}
    for problem in args.problems.split(","):
        begin = time.perf_counter()
        results = lab.compare(
            problem, args.methods.split(","), reference=REFERENCE, trials=args.trials, seeds=args.seeds,
            steps=args.steps, store=args.store, workers=args.workers,
        )  # fmt: skip
        found[problem] = {**row(results), "minutes": round((time.perf_counter() - begin) / 60, 1)}
        print(f"{problem}: {found[problem]['sentence']}", flush=True)
        whole = {"machine": _measure.machine("cpu"), "trials": args.trials, "seeds": args.seeds, "problems": found}
        args.json.write_text(json.dumps(whole, indent=1) + "\n")
        args.page.write_text(_page.written(whole))


def row(results: lab.Results) -> dict[str, Any]:
    """What is kept of a problem: the verdict, and each method's figures."""
    [problem] = results.report.problems
    described = problem.described
    medians = {one.method: {"median": one.median, "step_ms": one.timing["step_ms"]} for one in problem.methods}
    judged = problem.to_json()
    return {
        "reference": described.reference,
        "metric": described.metric,
        "higher_is_better": described.higher_is_better,
        "steps": described.steps,
        "margin": problem.margin,
        "sentence": problem.sentence,
        "best": judged["best"],
        "methods": {name: {**medians[name], **one} for name, one in judged["methods"].items()},
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--methods", default=",".join(chain(*optim.families().values())))
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, help="of a run, instead of each problem's own number")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--store", type=Path, default=Path("build/reality_check.db"))
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument(
        "--quick", action="store_true", help="two trials and seeds of five steps: a test of this script"
    )
    args = parser.parse_args()
    if args.quick:
        args.trials, args.seeds, args.steps = 2, 2, 5
    return args


if __name__ == "__main__":
    main()
