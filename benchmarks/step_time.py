"""How long one step() takes, beside the machine's memory bandwidth and the same methods in other libraries.

    python benchmarks/step_time.py [--methods adamw,adan] [--sets small,matrices] [--device cuda] [--quick]

Prints a table and writes it, with the goals missed, beside the JSON: a method's rows on a set replace those of an
earlier run, and the others stay. benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes a line each time that it is used

import _first_step
import _measure
import _peers
import _report
import _results
import _sets
import torch
from _methods import about
from torch.optim import Optimizer

from polyak import optim

RESULTS = Path(__file__).parent / "results"
WARM_UP = 8  # steps; AdaBelief's rectification begins at the sixth
CHUNK = 64 * 1024  # elements of the smallest bound on temporary memory

# Arrays that the pass reads in which a method with a sum over a tensor finds that sum.
SECOND_PASS = {
    "adamp": 4, "sgdp": 3, "tam": 3, "adatam": 3, "adatamw": 2, "cadamw": 3, "clion": 2, "cadan": 4, "csgdm": 2,
}  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {"methods": optim.names(), "sets": list(_sets.SHAPES), "libraries": list(_peers.LIBRARIES)}
    for name, choices in known.items():
        parser.add_argument(f"--{name}", type=_listed(choices), default=choices, help=f"of {','.join(choices)}")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for the rounds of one method on one set")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--execution", default="compiled", choices=("compiled", "batched", "eager", "auto"))
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/step_time-DEVICE.json")
    parser.add_argument("--patience", type=float, default=10.0, help="after so many seconds three warm-up steps do")
    parser.add_argument("--missing", action="store_true", help="only what the JSON lacks")
    parser.add_argument("--anew", action="store_true", help="keep nothing of what the JSON holds")
    parser.add_argument("--quick", action="store_true", help="miniature sets, two rounds: a test of this script")
    parser.add_argument("--no-first-step", action="store_true", help="leave out the first steps of fresh processes")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.limit = 2, 1.0
    return args


def _listed(choices: list[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        given = [name.strip() for name in text.split(",") if name.strip()]
        wrong = [name for name in given if name not in choices]
        if wrong or not given:
            raise argparse.ArgumentTypeError(f"{', '.join(wrong) or 'nothing'}: choose from {', '.join(choices)}")
        return given

    return names


@dataclass
class Known:
    """What one set's run tells the next: methods compiled so far, and how far peers deviate."""

    compiled: set[str] = field(default_factory=set)
    deviations: dict[tuple[str, str], float] = field(default_factory=dict)

    def deviation(self, method: str, other: _peers.Contender) -> float | None:
        """See :func:`_peers.deviation`; None for the reference itself."""
        if other.label == "polyak" or other.reference:
            return None
        key = (method, other.label)
        if key not in self.deviations:
            variants = {one.label: one for one in _peers.contenders(method, "eager", ())}
            self.deviations[key] = _peers.deviation(variants[f"polyak {other.beside}".strip()], other)
        return self.deviations[key]


class Bench:
    """All methods on one parameter set, with shared weights and gradients."""

    def __init__(self, name: str, args: argparse.Namespace, known: Known) -> None:
        self.args = args
        self.known = known
        self.tensors = _sets.make(name, args.device, args.quick)
        self.bandwidth = _measure.Bandwidth(self.tensors.elements, args.device)
        self.bandwidth()

    def rows(self, method: str) -> list[_report.Row]:
        """One row a contender."""
        steppers: dict[str, list[Optimizer]] = {}
        rows: dict[str, _report.Row] = {}
        execution = self.args.execution
        peers = _peers.contenders(method, execution, self.args.libraries)
        for contender in (*peers, *_peers.references(method, execution)):
            try:
                row = self._warm_up(contender, method, steppers)
                rows[contender.label] = {**row, "deviation": self.known.deviation(method, contender)}
            except Exception as error:
                if contender.label.startswith("polyak"):
                    raise
                print(f"{method:<10} {contender.label}: skipped ({type(error).__name__}: {str(error)[:90]})")
        self._time(rows, steppers)
        for label, row in rows.items():
            self.tensors.restore()
            row["extra_bytes"] = _measure.peak_extra(lambda label=label: _step(steppers[label]), self.args.device)
            row |= self._bytes(method, rows["polyak"]["kind"], steppers["polyak"])
            if row["ours"]:
                row["state_bytes"] = sum(one.state_bytes() for one in steppers[label]) / self.tensors.elements
        self._compare(list(rows.values()))
        self.known.compiled.add(method)
        return list(rows.values())

    def _warm_up(self, contender: _peers.Contender, method: str, steppers: dict[str, list[Optimizer]]) -> _report.Row:
        before = _measure.kernels()
        built = contender.build(self.tensors.params)
        start = time.perf_counter()
        seconds = []
        for t in range(WARM_UP):
            if t < 3 or time.perf_counter() - start < self.args.patience:
                self.tensors.restore()
                seconds.append(_measure.timed(lambda: _step(built), self.args.device))
        steppers[contender.label] = built
        row = {
            "method": method, "set": self.tensors.name, "contender": contender.label, "ours": contender.ours,
            "beside": contender.beside, "reference": contender.reference, "first_s": seconds[0],
            "date": datetime.date.today().isoformat(),
        }  # fmt: skip
        if contender.ours:
            facts = about(built[0])
            most = 0 if method in self.known.compiled else facts.kernels
            here = _measure.kernels() - before
            row["kind"] = facts.kind
            row["kernels"] = {"here": here, "most": most, "new_lr": self._kernels_of_a_new_lr(built)}
            row["claimed_bytes"] = _peers.claimed_bytes(method, contender.label)
        return row

    def _kernels_of_a_new_lr(self, built: list[Optimizer]) -> int:
        before = _measure.kernels()
        for group in (g for one in built for g in one.param_groups):
            group["lr"] *= 0.5
        self.tensors.restore()
        _step(built)
        return _measure.kernels() - before

    def _time(self, rows: dict[str, _report.Row], steppers: dict[str, list[Optimizer]]) -> None:
        actions: dict[str, Callable[[], Any]] = {label: lambda label=label: _step(steppers[label]) for label in rows}
        actions["bandwidth"] = self.bandwidth
        args = self.args
        seconds = _measure.interleaved(actions, self.tensors.restore, args.device, args.rounds, args.limit)
        peak = self.bandwidth.bytes / (_measure.summary(seconds["bandwidth"])["ms"] / 1e3)
        for label, row in rows.items():
            found = _measure.summary(seconds[label])
            row |= {**found, "bandwidth": peak}

    def _bytes(self, method: str, kind: str, ours: list[Optimizer]) -> _report.Row:
        """Bytes that any implementation must move: weights, gradients and memories in, weights and memories out."""
        params = list(self.tensors.params.values())
        size = sum(p.numel() * p.itemsize for p in params)
        state = sum(_state_bytes(ours, p) for p in params)
        largest = max(
            (p.numel() * p.itemsize for n, p in self.tensors.params.items() if _peers.is_matrix(n, p)), default=0
        )
        chunk = CHUNK * params[0].itemsize
        bound = max(size // 20, *((4 * chunk, 4 * largest) if kind == "matrix" else (chunk,)))
        found: _report.Row = {"must_bytes": 3 * size + 2 * state, "bound_bytes": bound}
        if method in SECOND_PASS:
            found["second_pass_bytes"] = SECOND_PASS[method] * size
        return found

    def _compare(self, rows: list[_report.Row]) -> None:
        """Ratios of polyak to each peer, and shares of the bandwidth."""
        ours = {row["contender"]: row for row in rows if row["ours"]}
        plain = ours["polyak"]
        low = ours.get("polyak bfloat16", plain)  # the peers' Muon iterates in bfloat16
        for row in rows:
            if not row["ours"]:
                judged = ours.get(f"polyak {row['beside']}") if row["beside"] else low
                other = plain if row["reference"] else judged or low
                row["ratio"], row["min_ratio"] = other["ms"] / row["ms"], other["min_ms"] / row["min_ms"]
                row["judged"] = judged["contender"] if judged else ""  # no goal without a variant that stores alike
            if plain["kind"] != "matrix" and not row["reference"]:
                speed = 1e3 * row["must_bytes"] / row["ms"]
                row["share"] = speed / row["bandwidth"]
                if "second_pass_bytes" in row and row["ours"]:
                    row["share_with_second_pass"] = row["share"] * (1 + row["second_pass_bytes"] / row["must_bytes"])


def _step(optimizers: list[Optimizer]) -> None:
    for one in optimizers:
        _peers.step(one)


def _state_bytes(optimizers: list[Optimizer], p: torch.Tensor) -> int:
    states = [one.state[p] for one in optimizers if p in one.state]
    return sum(v.nbytes for s in states for v in s.values() if isinstance(v, torch.Tensor) and v.shape == p.shape)


def main() -> None:
    """Measure, print, write."""
    args = arguments()
    torch._dynamo.config.recompile_limit = 512  # peers that compile a graph a shape must not fall back to eager
    path: Path = args.json or RESULTS / f"step_time-{args.device}.json"
    options = {"rounds": args.rounds, "execution": args.execution, "quick": args.quick, "device": args.device}
    found = _results.Results(path, _measure.machine(args.device), options, args.anew)
    known = Known()
    for name in args.sets:
        bench = Bench(name, args, known)
        size = {"tensors": len(bench.tensors.params), "elements": bench.tensors.elements}
        print(_report.header(f"{name}, {_sets.TITLES[name]}", size))
        for method in [m for m in args.methods if not (args.missing and found.has(name, m))]:
            rows = bench.rows(method)
            print("\n".join(_report.line(row, i == 0) for i, row in enumerate(rows)), flush=True)
            found.add(name, size, rows)  # at once, so that a run that is stopped has what it measured
            gc.collect()
        del bench
        gc.collect()
    for method in () if args.no_first_step else args.methods:
        found.add_first_steps(method, _first_steps(method, args))
    print("\n".join(found.finish()))
    print(f"written to {path}")


def _first_steps(method: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    found = _first_step.cold_and_warm(method, args.sets[0], args.device, args.execution, args.quick)
    print(_report.first_step_line(method, found), flush=True)
    return found


if __name__ == "__main__":
    main()
