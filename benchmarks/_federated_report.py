"""The picture of proofs_federated.py: accuracy by rule and attack, as colours and numbers."""

from __future__ import annotations

from html import escape
from typing import Any

CELL, ROW, LEFT, TOP = 84, 30, 170, 48


def picture(found: dict[str, Any], caption: str) -> str:
    """An SVG of the rules' rows and the attacks' columns; darker is worse."""
    table = {rule: cells for rule, cells in found.items() if "mean" not in cells}
    attacks = list(next(iter(table.values())))
    width, height = LEFT + CELL * len(attacks) + 10, TOP + ROW * len(table) + 10
    parts = [_text(10, 18, caption, "start")]
    parts += [_text(LEFT + CELL * (k + 0.5), 40, name, "middle") for k, name in enumerate(attacks)]
    for i, (rule, cells) in enumerate(table.items()):
        y = TOP + ROW * i
        parts.append(_text(LEFT - 8, y + 20, rule, "end"))
        for k, name in enumerate(attacks):
            parts += _cell(LEFT + CELL * k, y, cells[name]["mean"])
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])


def _cell(x: float, y: float, value: float) -> list[str]:
    lost = min(1.0, max(0.0, (1 - value) / 0.5))
    red, other = 255 - round(40 * lost), 255 - round(175 * lost)
    colour = f"rgb({red},{other},{other})"
    return [
        f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{ROW - 2}" fill="{colour}" stroke="#ccc"/>',
        _text(x + CELL / 2, y + 20, f"{100 * value:.1f} %", "middle"),
    ]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="13" text-anchor="{anchor}" fill="#222">{escape(text)}</text>'
