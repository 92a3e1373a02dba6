"""The table of step_time.py, and which goals its numbers meet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from _methods import BASES

SAME = 0.02  # relative deviation up to which a peer computes the same method (Muon runs in bfloat16)
MEGA = 1e6
Row = dict[str, Any]


def compares(row: Row) -> bool:
    """Whether a peer's row counts: it computes the same numbers."""
    if row.get("reference"):
        return False
    deviation = row.get("deviation")
    return deviation is None or deviation <= SAME


def table(rows: list[Row], sets: dict[str, Any], titles: dict[str, str]) -> Iterator[str]:
    """The lines of all rows, set by set."""
    for name, size in sets.items():
        own = [row for row in rows if row["set"] == name]
        dates = sorted({row["date"] for row in own})
        yield header(f"{name}, {titles[name]} ({' to '.join(sorted({dates[0], dates[-1]}))})", size)
        for before, row in zip([None, *own], own, strict=False):
            yield line(row, before is None or before["method"] != row["method"])


def header(title: str, size: dict[str, int]) -> str:
    """The lines above the rows of one set."""
    columns = f"{'method':<10} {'contender':<26} {'ms':>9} {'fastest':>9}  {'polyak/it':>9} {'fastest':>8}"
    columns += f" {'share':>6} {'(+2nd pass)':>11} {'extra MB':>9} {'first s':>8}"
    return f"\n{title}: {size['elements'] / 1e6:.1f} M elements in {size['tensors']:,} tensors\n{columns}"


def line(row: Row, first: bool) -> str:
    """One contender's row."""
    text = f"{row['method'] if first else '':<10} {row['contender']:<26} {row['ms']:9.2f} {row['min_ms']:9.2f} "
    ratios = "" if row["ours"] else f" {row['ratio']:9.2f} {row['min_ratio']:8.2f}"
    share = f"{100 * row['share']:5.0f}%" if row.get("share") else ""
    second = f"{100 * row['share_with_second_pass']:.0f}%" if row.get("share_with_second_pass") else ""
    mark = (
        ""
        if row["ours"] or row.get("reference") or compares(row)
        else f"  differs by {row['deviation']:.1g}: not compared"
    )
    over = f"  over the bound of {row['bound_bytes'] / MEGA:.2f} MB" if _too_much(row) else ""
    return (
        f"{text}{ratios:>19} {share:>6} {second:>11} {row['extra_bytes'] / MEGA:9.2f} {row['first_s']:8.2f}{mark}{over}"
    )


def _too_much(row: Row) -> bool:
    return bool(row["ours"] and row["extra_bytes"] > row["bound_bytes"])


def first_step_line(method: str, found: dict[str, Row]) -> str:
    """Cold and warm first steps of a method."""
    cold, warm = found["cold"], found["warm"]
    times = f"{cold['first_step_s']:6.2f} s cold, {warm['first_step_s']:5.2f} s in a second process"
    own = f"torch.optim.AdamW's own {found['torch']['first_step_s']:.2f} s"
    return f"{method:<10} first step {times}; {own}; import {warm['import_s']:.2f} s; {cold['kernels']} kernels"


def goals(rows: list[Row], first_steps: dict[str, dict[str, Row]]) -> Iterator[tuple[bool, str]]:
    """Every goal with its number, and whether it is met."""
    kinds = {row["method"]: row["kind"] for row in rows if row["contender"] == "polyak"}
    for row in rows:
        if row["ours"]:
            yield from _own_goals(row)
        elif row.get("reference"):
            if row["reference"] == BASES.get(row["method"], "adamw") and kinds[row["method"]] == "sum":
                yield (
                    row["ratio"] <= 1.5,
                    f"{row['method']} {row['set']}: {row['ratio']:.2f} <= 1.50 of {row['reference']}",
                )
        elif compares(row) and row["judged"]:
            most, strict = _limit(row)
            met = row["ratio"] < most if strict else row["ratio"] <= most
            sign = "<" if strict else "<="
            yield met, f"{_name(row)}: polyak/it {row['ratio']:.2f} {sign} {most:.2f}"
    for method, found in first_steps.items():
        warm = found["warm"]
        beyond = warm["first_step_s"] - found["torch"]["first_step_s"]
        yield beyond < 0.3, f"{method}: warm first step {beyond:.2f} s < 0.3 s beyond torch.optim's"
        yield (
            found["cold"]["first_step_s"] < 12,
            f"{method}: cold first step {found['cold']['first_step_s']:.1f} s < 12 s",
        )
        loads = warm["import_loads"]
        yield not loads, f"{method}: import loads no compiler ({', '.join(loads) or 'none'})"


def _own_goals(row: Row) -> Iterator[tuple[bool, str]]:
    yield (
        not _too_much(row),
        f"{_name(row)}: extra {row['extra_bytes'] / MEGA:.2f} <= {row['bound_bytes'] / MEGA:.2f} MB",
    )
    if row["kind"] == "elementwise" and row["set"] != "small" and row.get("share"):
        yield row["share"] >= 0.85, f"{_name(row)}: {100 * row['share']:.0f}% >= 85% of the bandwidth"
    if row["contender"] == "polyak":
        new = row["kernels"]
        yield new["new_lr"] == 0, f"{_name(row)}: {new['new_lr']} kernels for a new lr"
        yield new["here"] <= new["most"], f"{_name(row)}: {new['here']} new kernels <= {new['most']}"


def _limit(row: Row) -> tuple[float, bool]:
    """The largest ratio that the goals allow, and whether it must be below."""
    if row["contender"] == "torch.optim fused":
        return (0.70 if row["set"] == "small" else 0.95), False
    if row["method"] == "adan" and row["contender"].startswith("pytorch_optimizer"):
        return 0.4, False
    return 1.0, True


def _name(row: Row) -> str:
    return f"{row['method']} {row['set']} {row['contender']}"


def verdict(rows: list[Row], first_steps: dict[str, dict[str, Row]]) -> list[str]:
    """The goals missed, one a line, under a count."""
    all_goals = list(goals(rows, first_steps))
    missed = [text for met, text in all_goals if not met]
    return [
        f"\n{len(all_goals) - len(missed)} of {len(all_goals)} goals met",
        *(f"  missed: {text}" for text in missed),
    ]
