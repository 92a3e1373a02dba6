"""The tables and the picture of lab_power.py."""

from __future__ import annotations

from html import escape
from itertools import pairwise
from typing import Any

Row = dict[str, Any]
COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#555555", "#d55e00", "#000000", "#56b4e9")
WIDTH, HEIGHT = 460, 300
FALSE_CALLS, FOUND = 0.05, 0.80


def table(row: Row) -> str:
    """The rates of one world."""
    world = row["world"]
    lines = [f"{world['name']} (steepness {world['steepness']:g}, correlation of seeds {world['pairing']:g})"]
    lines.append("  seeds   A/A: called   equivalent   A/A of six: called   2 SD: found   of six")
    six = {one["seeds"]: f"{one['called']:.1%}" for one in row["six"]}
    of_six = {one["seeds"]: f"{one['found']:.1%}" for one in row["two of six"]}
    for same, two in zip(row["same"], row["two"], strict=True):
        lines.append(
            f"  {same['seeds']:>5} {same['called']:>13.1%} {same['equivalent']:>12.1%} "
            f"{six.get(same['seeds'], ''):>20} {two['better']:>13.1%} {of_six.get(same['seeds'], ''):>8}"
        )
    same, two = row["clear"]["same"], row["clear"]["two"]
    lines.append(
        f"  until clear: A/A called in {same['called']:.1%} with {same['seeds']:.3g} seeds, "
        f"2 SD found in {two['better']:.1%} with {two['seeds']:.3g}"
    )
    return "\n".join(lines)


def coverage_table(rows: list[Row]) -> str:
    """How often the two kinds of intervals contain the mean."""
    lines = ["95 % intervals of a mean contain it", f"  {'values':<12} {'seeds':>5} {'t':>7} {'BCa':>7}"]
    lines += [f"  {row['values']:<12} {row['seeds']:>5} {row['t']:>7.1%} {row['bca']:>7.1%}" for row in rows]
    return "\n".join(lines)


def goals(report: Row) -> list[str]:
    """What the rates were to be, and are."""
    lines = []
    for row in report["worlds"]:
        name = row["world"]["name"]
        worst = max(one["called"] for one in (*row["same"], *row["six"], row["clear"]["same"]))
        power = next(one["better"] for one in row["two"] if one["seeds"] == 8)
        of_six = next(one["found"] for one in row["two of six"] if one["seeds"] == 8)
        found = [one["better"] for one in row["two"]]
        rises = all(before <= after for before, after in pairwise(found))
        lines.append(f"{_met(worst <= FALSE_CALLS)}: {name}: at most {worst:.1%} of A/A comparisons called, 5% allowed")
        lines.append(f"{_met(power >= FOUND)}: {name}: 2 SD found in {power:.1%} at 8 seeds, 80% wanted")
        lines.append(f"{_met(of_six >= FOUND)}: {name}: of five 2 SD better {of_six:.1%} found at 8 seeds, 80% wanted")
        lines.append(f"{_met(rises)}: {name}: power never falls with more seeds")
    return lines


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


def picture(report: Row) -> str:
    """False calls and power by number of seeds, as SVG; a line a world."""
    panels = (
        ("one method under two names: called different", "same", "called", 0.2, FALSE_CALLS),
        ("2 standard deviations better: found", "two", "better", 1.0, FOUND),
    )
    total = HEIGHT + 30 + 18 * len(report["worlds"])
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {total}" font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for i, (title, kind, column, top, goal) in enumerate(panels):
        lines = [[(one["seeds"], one[column]) for one in row[kind]] for row in report["worlds"]]
        body += [f'<g transform="translate({i * WIDTH} 0)">', *_panel(title, lines, top, goal), "</g>"]
    for i, row in enumerate(report["worlds"]):
        y = HEIGHT + 10 + 18 * i
        body.append(f'<rect x="50" y="{y}" width="14" height="4" fill="{COLOURS[i % len(COLOURS)]}"/>')
        body.append(_text(72, y + 6, row["world"]["name"], 12))
    return "\n".join([*body, "</svg>\n"])


def _panel(title: str, lines: list[list[tuple[int, float]]], top: float, goal: float) -> list[str]:
    left, above, wide, tall = 50, 30, WIDTH - 80, HEIGHT - 80
    most = max(seeds for line in lines for seeds, _ in line)

    def place(seeds: float, share: float) -> tuple[float, float]:
        return left + wide * seeds / most, above + tall * (1 - min(share, top) / top)

    body = [_text(left, 18, title, 13)]
    for i in range(5):
        y = place(0, top * i / 4)[1]
        body.append(f'<path d="M{left} {y:.1f}h{wide}" stroke="#dddddd"/>')
        body.append(_text(8, y + 4, f"{top * i / 4:.0%}", 11))
    body.append(f'<path d="M{left} {place(0, goal)[1]:.1f}h{wide}" stroke="#000000" stroke-dasharray="4 3"/>')
    body += [_text(place(seeds, 0)[0] - 4, above + tall + 16, str(seeds), 11) for seeds, _ in lines[0]]
    body.append(_text(left + wide / 2 - 20, above + tall + 34, "seeds", 12))
    for i, line in enumerate(lines):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        body.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="2"/>')
    return body


def _text(x: float, y: float, text: str, size: int) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}">{escape(text)}</text>'
