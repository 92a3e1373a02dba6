"""Tables and the picture of local_learning.py."""

from __future__ import annotations

import math
from html import escape
from statistics import mean, stdev
from typing import Any

Row = dict[str, Any]
# 97.5 % points of Student's t, by degrees of freedom
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
COLOURS = ("#222222", "#999999", "#1f77b4", "#2ca02c", "#9467bd", "#d62728", "#ff7f0e", "#8c564b", "#e377c2", "#17becf")


def interval(values: list[float]) -> str:
    """Mean and, from two values on, the half width of its 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    half = T.get(len(values) - 1, 1.96) * stdev(values) / math.sqrt(len(values))
    return f"{mean(values):.1f} +- {half:.1f}"


def cost_table(rows: list[Row]) -> str:
    """Memory, arithmetic and time beside those of end-to-end training."""
    lines = ["network     K  method               activations MB   share    FLOPs   time   time/FLOPs"]
    for row in rows:
        ratios = f"{row['memory_share']:6.1%} {row['flops_ratio']:8.2f}x {row['time_ratio']:5.2f}x"
        lines.append(
            f"resnet{row['depth']:<4} {row['blocks']:>3}  {row['method']:<20} {row['memory'] / 1e6:14.1f}  {ratios} "
            f"{row['time_ratio'] / row['flops_ratio']:8.2f}"
        )
    return "\n".join(lines)


def accuracy_table(rows: list[Row]) -> str:
    """Test errors by network, number of blocks and method."""
    lines = ["network     K  method               seeds  test error %"]
    for (depth, blocks, method), errors in grouped(rows).items():
        lines.append(f"resnet{depth:<4} {blocks:>3}  {method:<20} {len(errors):>5}  {interval(errors)}")
    return "\n".join(lines)


def grouped(rows: list[Row]) -> dict[tuple[int, int, str], list[float]]:
    """Errors of all seeds."""
    found: dict[tuple[int, int, str], list[float]] = {}
    for row in rows:
        found.setdefault((row["depth"], row["blocks"], row["method"]), []).append(row["error"])
    return found


def goals(costs: list[Row]) -> list[str]:
    """What the costs were to be, and are."""
    lines = []
    for row in costs:
        if row["method"] == "end-to-end":
            continue
        name = f"{row['method']} at K = {row['blocks']} on ResNet-{row['depth']}"
        if row["method"].startswith("man") and row["blocks"] == 16 and row["depth"] == 110:
            met = row["memory_share"] <= 0.4
            lines.append(f"{'met' if met else 'MISSED'}: memory of {name}: {row['memory_share']:.1%} <= 40%")
        over = row["time_ratio"] / row["flops_ratio"]
        lines.append(f"{'met' if over <= 1.1 else 'MISSED'}: time of {name}: {over:.2f} of its arithmetic <= 1.10")
    return lines


def picture(costs: list[Row], runs: list[Row], caption: str) -> str:
    """Share of end-to-end's activation memory against test accuracy, as SVG; a panel a network, a point a K."""
    width, height = 760, 460
    depths = list(dict.fromkeys(r["depth"] for r in runs))
    colours = dict(zip(dict.fromkeys(r["method"] for r in runs), COLOURS, strict=False))
    panels = []
    for i, depth in enumerate(depths):
        drawn = _panel(costs, [r for r in runs if r["depth"] == depth], caption, colours, width, height)
        panels += [f'<g transform="translate(0 {i * height})">', *drawn, "</g>"]
    total = height * max(1, len(depths))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" font-family="sans-serif">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *panels, "</svg>\n"])


def _panel(
    costs: list[Row], runs: list[Row], caption: str, colours: dict[str, str], width: int, height: int
) -> list[str]:
    memory = {(r["depth"], r["blocks"], r["method"]): r["memory_share"] for r in costs}
    points: dict[str, list[tuple[float, float, str]]] = {}
    for (depth, blocks, method), errors in grouped(runs).items():
        if (depth, blocks, method) in memory:
            point = memory[depth, blocks, method], 100 - mean(errors), f"K = {blocks}"
            points.setdefault(method, []).append(point)
    values = [y for found in points.values() for _, y, _ in found]
    low = 10 * math.floor(min(values, default=0) / 10)
    left, bottom = 60, 50

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x * (width - left - 180), height - bottom - (y - low) / (100 - low) * (height - bottom - 40)

    seeds = len({r["seed"] for r in runs})
    body = [_text(left, 22, f"ResNet-{runs[0]['depth']}, {caption}, {seeds} seed{'s'[: seeds > 1]}", 13)]
    for i in range(6):
        x, y = place(i / 5, low)
        body.append(_text(x - 12, y + 20, f"{20 * i} %", 11))
        x, y = place(0, low + i * (100 - low) / 5)
        body.append(_text(x - 40, y + 4, f"{low + i * (100 - low) / 5:.0f} %", 11))
        body.append(f'<path d="M{x:.1f} {y:.1f}H{place(1, 0)[0]:.1f}" stroke="#dddddd"/>')
    body.append(_text(left + 120, height - 10, "activation memory, of end-to-end training", 12))
    for i, (method, found) in enumerate(points.items()):
        body += _series(method, sorted(found), colours[method], 50 + 20 * i, width - 165, place)
    return body


def _series(
    method: str, found: list[tuple[float, float, str]], colour: str, row: int, column: float, place: Any
) -> list[str]:
    spots = [place(x, y) for x, y, _ in found]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    drawn = [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-opacity="0.5"/>']
    for (x, y), (share, accuracy, label) in zip(spots, found, strict=True):
        title = escape(f"{method}, {label}: {accuracy:.1f} % at {share:.0%}")
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{title}</title></circle>')
    drawn.append(f'<circle cx="{column}" cy="{row}" r="4" fill="{colour}"/>')
    return [*drawn, _text(column + 10, row + 4, method, 12)]


def _text(x: float, y: float, text: str, size: int) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}">{escape(text)}</text>'
