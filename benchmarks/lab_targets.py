"""What two plain baselines, tuned, reach on the built-in problems: where the problems' targets come from.

    python benchmarks/lab_targets.py [PROBLEM ...]

SGD with momentum and AdamW are tried with six learning rates each on one seed; the best of each runs again on three
others. The target is the worst validation metric of the three, for the baseline where that is better, rounded to the
easier side: to hundredths of an accuracy, to two digits of an error. Problems are written as they end, so a few can be
done at a time; the two functions whose minimum is known have targets of their own.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

import _measure
import torch

from polyak.lab.problems import BUILTIN, Problem, load
from polyak.lab.train import execute

RESULTS = Path(__file__).parent / "results" / "lab_targets.json"
KNOWN = ("rosenbrock", "illconditioned")
TUNING_SEED, SEEDS = 0, (1, 2, 3)
BASELINES: dict[str, list[dict[str, Any]]] = {
    "sgd": [{"lr": lr, "momentum": 0.9} for lr in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)],
    "adamw": [{"lr": lr, "weight_decay": 0.01} for lr in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)],
}
ONE_BASELINE = {"stdlib-lm": ("adamw",), "stdlib-lm-large-batch": ("adamw",)}  # SGD is far behind on these


def main() -> None:
    """Tune, run, write."""
    choices = [name for name in BUILTIN if name not in KNOWN]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="*", metavar="PROBLEM", help=f"of {', '.join(choices)}; by default all")
    parser.add_argument("--steps", type=int, help="instead of each problem's own number: a test of this script")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    if unknown := [name for name in args.problems if name not in choices]:
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(choices)}")
    torch.set_num_threads(1)
    for name in args.problems or choices:
        row = outcome(load(name).problem, args.steps)
        print(name, json.dumps(row), flush=True)
        write(args.json, name, row)


def outcome(problem: Problem, steps: int | None) -> dict[str, Any]:
    """The better baseline's best setting, what it reached with each seed, and the target that follows."""
    steps = steps or problem.steps
    begin, made = time.process_time(), 0
    tuned = {}
    for method in ONE_BASELINE.get(problem.name, tuple(BASELINES)):
        trials = [(run(problem, method, setting, TUNING_SEED, steps), setting) for setting in BASELINES[method]]
        _, setting = min(trials, key=lambda trial: badness(problem, trial[0]))
        tuned[method] = (setting, [run(problem, method, setting, seed, steps) for seed in SEEDS])
        made += len(trials) + len(SEEDS)
    worst = {method: max(metrics, key=lambda m: badness(problem, m)) for method, (_, metrics) in tuned.items()}
    ranked = sorted(tuned, key=lambda method: badness(problem, worst[method]))
    if math.isnan(worst[ranked[0]]):
        raise RuntimeError(f"{problem.name}: every baseline diverged on one seed or more")
    rows = [
        {"baseline": method, "setting": tuned[method][0], "metrics": _numbers(tuned[method][1])} for method in ranked
    ]
    return {
        "target": eased(worst[ranked[0]], problem.higher_is_better),
        "steps": steps,
        "cpu_seconds_a_run": round((time.process_time() - begin) / made, 2),
        **rows[0],
        "others": rows[1:],
    }


def run(problem: Problem, method: str, setting: dict[str, Any], seed: int, steps: int) -> float:
    """The validation metric at the end; not a number for a run that diverged."""
    made = execute(problem, method, setting, seed, "validation", steps)
    if made.status == "failed":
        raise RuntimeError(made.detail["error"])
    return math.nan if made.metric is None else made.metric


def _numbers(metrics: list[float]) -> list[float | None]:
    """JSON has no NaN."""
    return [None if math.isnan(metric) else metric for metric in metrics]


def badness(problem: Problem, metric: float) -> float:
    """A number that sorts the best first."""
    if math.isnan(metric):
        return math.inf
    return -metric if problem.higher_is_better else metric


def eased(metric: float, higher_is_better: bool) -> float:
    """Rounded to where it is easier to reach: hundredths of an accuracy, two digits of an error."""
    exact = Decimal(repr(metric))
    if higher_is_better:
        return float(exact.quantize(Decimal("0.01"), ROUND_FLOOR))
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 1), ROUND_CEILING))


def write(path: Path, name: str, row: dict[str, Any]) -> None:
    """Put one problem's row into the file, beside those of the others."""
    problems = json.loads(path.read_text())["problems"] if path.exists() else {}
    problems = {known: {**problems, name: row}[known] for known in BUILTIN if known in {**problems, name: row}}
    text = {"machine": _measure.machine("cpu"), "seeds": SEEDS, "problems": problems}
    path.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
