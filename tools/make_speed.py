"""Write docs/speed.md from benchmarks/results/step_time-cpu.json.

python tools/make_speed.py            # write it
python tools/make_speed.py --check    # fail if it is out of date
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyak import optim

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "step_time-cpu.json"
SETS = ("matrices", "small")
SAME = 0.02  # as in benchmarks/_report.py
FAR = {"reference": 2.0, "peer": 1.5}
Row = dict[str, Any]

HEAD = """# How long is a step?

Made by `tools/make_speed.py` from `benchmarks/results/step_time-cpu.json`, which `benchmarks/step_time.py` writes;
[benchmarks/README.md](../benchmarks/README.md) says how it measures. {machine}

A cell holds two ratios of medians of interleaved rounds, polyak's time over the other's, below 1 where polyak is
faster: on {sets}. "Base" is the method to which a method adds its work, here polyak's own; "best peer" the fastest of
{libraries} that computes the same numbers. State is in bytes a float32 weight on the few matrices: measured, all of it,
and what `state_bytes_per_parameter` claims. *sum*: the method sums over a tensor or all of them first; *matrix*: it
takes matrix functions.

| method | | vs AdamW | vs its base | vs best peer | state, measured | claimed |
|---|---|---|---|---|---|---|
"""


def peers(rows: list[Row]) -> list[Row]:
    """Rows of other libraries that compute the same numbers."""
    others = [row for row in rows if not row["ours"] and not row["reference"] and row["judged"]]
    return [row for row in others if row["deviation"] is not None and row["deviation"] <= SAME]


def best_peer(rows: list[Row]) -> Row | None:
    """The peer against which polyak does worst."""
    return max(peers(rows), key=lambda row: row["ratio"], default=None)


def against(rows: list[Row], name: str) -> Row | None:
    """The row of another method of polyak."""
    return next((row for row in rows if row["reference"] == name), None)


def base_of(rows: list[Row]) -> Row | None:
    """The row of the method's base: AdamW where it has no other."""
    references = sorted((row for row in rows if row["reference"]), key=lambda row: row["reference"] == "adamw")
    return references[0] if references else None


def line(name: str, by_set: dict[str, list[Row]]) -> str:
    """A method's line of the table."""
    every = [by_set.get(which, []) for which in SETS]
    own = next(row for rows in every for row in rows if row["contender"] == "polyak")
    bases = [base_of(rows) for rows in every]
    kind = "" if own["kind"] == "elementwise" else own["kind"]
    base = next((row["reference"] for row in bases if row), "")
    told = f"{base} {_cell(bases)}" if base not in ("", "adamw") else ""
    state = f"{own['state_bytes']:.3g} | {own['claimed_bytes']:g}"
    adamw = _cell([against(rows, "adamw") for rows in every])
    return f"| `{name}` | {kind} | {adamw} | {told} | {_peer(every)} | {state} |\n"


def _cell(rows: list[Row | None]) -> str:
    if not any(rows):
        return ""
    return " / ".join("–" if row is None else f"{row['ratio']:.2f}" for row in rows)


def _peer(every: list[list[Row]]) -> str:
    found = [best_peer(rows) for rows in every]
    names = dict.fromkeys(row["contender"] for row in found if row)
    return f"{_cell(found)} ({', '.join(names)})" if names else ""


def misses(methods: dict[str, dict[str, list[Row]]]) -> Iterator[str]:
    """Where a method takes over twice its base, or over one and a half times its best peer."""
    for name, by_set in methods.items():
        for which, rows in by_set.items():
            base, peer = base_of(rows), best_peer(rows)
            if base and base["ratio"] > FAR["reference"]:
                yield f"- `{name}`, {which}: {base['ratio']:.2f} times `{base['reference']}`\n"
            if peer and peer["ratio"] > FAR["peer"]:
                yield f"- `{name}`, {which}: {peer['ratio']:.2f} times {peer['contender']}\n"


def page() -> str:
    """The whole page."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    methods: dict[str, dict[str, list[Row]]] = {}
    for row in found["rows"]:
        if row["set"] in SETS:
            methods.setdefault(row["method"], {}).setdefault(row["set"], []).append(row)
    others = {row["contender"].split()[0] for rows in methods.values() for own in rows.values() for row in peers(own)}
    text = HEAD.format(
        machine=_machine(found), sets=" / ".join(_size(w, found["sets"][w]) for w in SETS if w in found["sets"]),
        libraries=", ".join(sorted(others)),
    )  # fmt: skip
    far = "".join(misses(methods)) or "None.\n"
    tail = f"\n## Far off\n\nOver twice the base, or over 1.5 times the best peer:\n\n{far}"
    if missing := [f"`{name}`" for name in optim.names() if name not in methods]:
        tail += f"\n## Not measured\n\n{len(missing)} of {len(optim.names())}: {', '.join(missing)}.\n"
    return text + "".join(line(name, methods[name]) for name in sorted(methods)) + tail


def _machine(found: dict[str, Any]) -> str:
    facts = found["machine"]
    clock = "CPU time, so that other work does not count" if facts["clock"] == "process_time" else "wall time"
    dates = sorted({row["date"] for row in found["rows"]})
    when = " to ".join(sorted({dates[0], dates[-1]}))
    threads = "one thread" if facts["threads"] == 1 else f"{facts['threads']} threads"
    return f"{facts['cpu']}, {threads}, {clock}, torch {facts['torch']}, compiled, {when}."


def _size(which: str, size: dict[str, int]) -> str:
    kind = {"matrices": "few matrices", "small": "many small tensors"}[which]
    return f"{kind} ({size['elements'] / 1e6:.1f} M elements in {size['tensors']:,} tensors)"


if __name__ == "__main__":
    from _docs import made  # beside this script

    sys.exit(made("speed.md", page))
