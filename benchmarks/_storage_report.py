"""The table and the picture of storage.py."""

from __future__ import annotations

import math
from html import escape
from statistics import fmean
from typing import Any

Row = dict[str, Any]
COLOURS = {"float32": "#222222", "bfloat16": "#1f77b4", "int8": "#d62728", "factored": "#2ca02c"}
WIDTH, HEIGHT, COLUMNS = 380, 240, 3


def table(rows: list[Row]) -> str:
    """Loss, metric, bytes and time of every method and storage, beside float32's."""
    lines = [f"{'method':<10} {'storage':<9} {'loss':>8} {'- float32':>10} {'metric':>8} {'bytes/par':>10} {'time':>6}"]
    for method, found in _grouped(rows).items():
        base = found.get("float32")
        for storage, runs in found.items():
            loss = fmean(row["loss"] for row in runs)
            gap = f"{loss - fmean(row['loss'] for row in base):+10.4f}" if base else ""
            time = f"{runs[0]['ms'] / base[0]['ms']:5.2f}x" if base else ""
            metric = fmean(row["metric"] for row in runs)
            lines.append(
                f"{method:<10} {storage:<9} {loss:8.4f} {gap:>10} {metric:8.4f} {runs[0]['bytes']:10.3f} {time:>6}"
            )
    return "\n".join(lines)


def picture(rows: list[Row], caption: str) -> str:
    """Loss curves as SVG: a panel a method, a line a storage (the mean over seeds)."""
    grouped = _grouped(rows)
    total = 40 + HEIGHT * math.ceil(len(grouped) / COLUMNS)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * COLUMNS} {total}" font-family="sans-serif">'
    body = [head, '<rect width="100%" height="100%" fill="white"/>', _text(20, 24, caption, 14)]
    for i, (storage, colour) in enumerate(COLOURS.items()):
        body.append(f'<rect x="{500 + 110 * i}" y="15" width="12" height="12" fill="{colour}"/>')
        body.append(_text(517 + 110 * i, 25, storage, 12))
    for i, (method, found) in enumerate(grouped.items()):
        x, y = WIDTH * (i % COLUMNS), 40 + HEIGHT * (i // COLUMNS)
        body += [f'<g transform="translate({x} {y})">', *_panel(method, found), "</g>"]
    return "\n".join([*body, "</svg>\n"])


def _grouped(rows: list[Row]) -> dict[str, dict[str, list[Row]]]:
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(row["method"], {}).setdefault(row["storage"], []).append(row)
    return found


def _panel(method: str, found: dict[str, list[Row]]) -> list[str]:
    curves = {
        storage: [fmean(points) for points in zip(*(row["curve"] for row in runs), strict=True)]
        for storage, runs in found.items()
    }
    finite = [y for curve in curves.values() for y in curve if math.isfinite(y)] or [0.0]
    low, high = min(finite), max(finite) + 1e-9
    left, top, wide, tall = 45, 25, WIDTH - 65, HEIGHT - 55
    body = [_text(left, 16, method, 13)]
    for i in range(3):
        y = top + tall * i / 2
        body.append(f'<path d="M{left} {y:.1f}h{wide}" stroke="#dddddd"/>')
        body.append(_text(5, y + 4, f"{high - (high - low) * i / 2:.2f}", 11))
    for storage, curve in curves.items():
        spots = [
            f"{left + wide * i / max(1, len(curve) - 1):.1f},{top + tall * (high - y) / (high - low):.1f}"
            for i, y in enumerate(curve)
            if math.isfinite(y)
        ]
        colour = COLOURS.get(storage, "#9467bd")
        body.append(f'<polyline points="{" ".join(spots)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return body


def _text(x: float, y: float, text: str, size: int) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}">{escape(text)}</text>'
