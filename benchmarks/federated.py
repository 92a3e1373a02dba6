"""Learning over workers: how long our aggregators take beside byzfl's, and how much memory they need.

    PYTHONPATH=build/peers OMP_NUM_THREADS=1 python benchmarks/federated.py aggregators [--workers 20] [--size 1000000]

For every rule that both have, on the same vectors, in one process in random order. byzfl's torch code computes in
float32 whatever it is given, so in float64 its numpy code is measured, in float32 both. Goals: each of ours as fast as
the faster of byzfl's or faster, NNA in at most 0.3 of the time of byzfl's MoNNA, and at most as much memory beside the
vectors and the result as the vectors take. Prints a table; its rows replace those of the same rules in the JSON as they
come. Without byzfl ours alone are measured.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _measure
import torch

from polyak.federated import aggregators
from polyak.federated.aggregators import Aggregator

RESULTS = Path(__file__).parent / "results" / "federated.json"
DTYPES = {"float32": torch.float32, "float64": torch.float64}
NNA_SHARE = 0.3
Row = dict[str, Any]


def byzfl() -> types.ModuleType | None:
    """byzfl's rules without the rest of it, which needs torchvision and more; None if it is not there."""
    found = importlib.util.find_spec("byzfl")
    if found is None or not found.submodule_search_locations:
        print("byzfl: skipped (it is not installed)")
        return None
    package = types.ModuleType("byzfl")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["byzfl"] = package
    both = types.ModuleType("byzfl_rules")
    for name in ("aggregators", "preaggregators"):
        vars(both).update(vars(importlib.import_module(f"byzfl.aggregators.{name}")))
    return both


def pairs(f: int, theirs: types.ModuleType | None) -> dict[str, tuple[Aggregator, Callable[[Any], Any] | None]]:
    """Our rules, and byzfl's with the same arguments where it has one."""
    a = aggregators
    ours: dict[str, tuple[Aggregator, str, tuple[Any, ...]]] = {
        "mean": (a.Mean(), "Average", ()),
        "median": (a.Median(), "Median", ()),
        "trimmed_mean": (a.TrimmedMean(f), "TrMean", (f,)),
        "meamed": (a.MeaMed(f), "Meamed", (f,)),
        "phocas": (a.Phocas(f), "", ()),
        "krum": (a.Krum(f), "Krum", (f,)),
        "multi_krum": (a.MultiKrum(f), "MultiKrum", (f,)),
        "nna": (a.NNA(f), "MoNNA", (f, 0)),
        "mda": (a.MDA(f), "MDA", (f,)),
        "mva": (a.MVA(f), "", ()),
        "cge": (a.CGE(f), "", ()),
        "aksel": (a.Aksel(), "", ()),
        "geometric_median": (a.GeometricMedian(), "GeometricMedian", (0.1, 3)),
        "centered_clipping": (a.CenteredClipping(100.0), "CenteredClipping", (None, 1, 100.0)),
        "nnm": (a.NNM(f), "NNM", (f,)),
        "clipping": (a.Clipping(2.0), "Clipping", (2.0,)),
        "arc": (a.ARC(f), "ARC", (f,)),
    }
    return {
        slug: (rule, getattr(theirs, name)(*arguments) if theirs and name else None)
        for slug, (rule, name, arguments) in ours.items()
    }


def measured(slug: str, pair: tuple[Aggregator, Any], dtype: str, args: argparse.Namespace) -> Row:
    """Times and memory of one rule in one dtype."""
    rule, theirs = pair
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(args.workers, args.size, generator=generator, dtype=DTYPES[dtype])
    actions: dict[str, Callable[[], Any]] = {"polyak": lambda: rule(vectors)}
    if theirs is not None:
        copies = slug in {"clipping", "arc"}  # byzfl writes into what it is given
        array = vectors.numpy()
        actions["byzfl, numpy"] = lambda: theirs(array.copy() if copies else array)
        if dtype == "float32":
            actions["byzfl, torch"] = lambda: theirs(vectors.clone() if copies else vectors)
    for action in actions.values():
        action()
    found = _measure.interleaved(actions, lambda: None, "cpu", args.rounds, args.limit)
    extra = _measure.peak_extra(actions["polyak"], "cpu") - rule(vectors).nbytes
    times = {name: _measure.summary(seconds) for name, seconds in found.items()}
    ratios = {name: times["polyak"]["ms"] / time["ms"] for name, time in times.items() if name != "polyak"}
    return {"rule": slug, "dtype": dtype, "times": times, "ratios": ratios, "extra": extra / vectors.nbytes}


def missed(rows: list[Row]) -> list[str]:
    """The goals that were missed."""
    found = []
    for row in rows:
        place = f"{row['rule']} {row['dtype']}"
        allowed = NNA_SHARE if row["rule"] == "nna" else 1.0
        found += [f"{place}: {r:.2f} of the time of {name}" for name, r in row["ratios"].items() if r > allowed]
        if row["extra"] > 1:
            found.append(f"{place}: {row['extra']:.2f} of the vectors' memory beside them and the result")
    return found


def line(row: Row) -> str:
    """A row of the table."""
    others = "  ".join(f"{name} {row['times'][name]['ms']:.0f} ms ({r:.2f})" for name, r in row["ratios"].items())
    own = f"{row['rule']:<18}{row['dtype']:<9}{row['times']['polyak']['ms']:>8.1f} ms"
    return f"{own}  memory {row['extra']:.2f}  {others}"


def measure_aggregators(args: argparse.Namespace, before: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The part ``aggregators``: what was found before, with one more row each time."""
    options = {name: getattr(args, name) for name in ("workers", "size", "num_byzantine", "rounds")}
    rows = before.get("rows", []) if before.get("options") == options else []
    for slug, pair in pairs(args.num_byzantine, byzfl()).items():
        if args.rules and slug not in args.rules.split(","):
            continue
        for dtype in DTYPES:
            row = measured(slug, pair, dtype, args)
            print(line(row), flush=True)
            rows = [*(r for r in rows if (r["rule"], r["dtype"]) != (slug, dtype)), row]
            yield {"machine": _measure.machine("cpu"), "options": options, "rows": rows, "missed": missed(rows)}
    print("\n".join(missed(rows)) or "all goals met")


PARTS: dict[str, Callable[[argparse.Namespace, dict[str, Any]], Iterator[dict[str, Any]]]] = {
    "aggregators": measure_aggregators
}


def main(arguments: list[str] | None = None) -> None:
    """Run the chosen parts and add them to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--num-byzantine", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for the rounds of one rule")
    parser.add_argument("--rules", help="comma-separated; all if none is given")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    results = json.loads(args.json.read_text()) if args.json.exists() else {}
    for part in args.parts:
        for found in PARTS[part](args, results.get(part, {})):
            results[part] = found
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
