"""The pieces of a chart: elements, scales, ticks, markers, and labels that keep out of each other's way.

Charts are SVG made here, by the Python that writes the page, and not by a library in the browser. A page must be
readable without JavaScript, in print and in dark colours, so the picture has to be in the file anyway. Vega-Lite,
whose pip package (vl-convert-python, 84 MB) makes both the picture and the script, was tried on two cores: 2.3 s for
the first picture, 0.24 s for each further one and 4.7 s for a script of 0.9 MB, where a page of 5,000 runs takes 1 s
here; and it cannot lay out labels at the ends of lines. Colours are CSS variables, so that one picture serves both
schemes; a small script adds zoom, values under the pointer and saving as a file.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from importlib.resources import files
from pathlib import Path

from polyak.lab import palette
from polyak.lab.table import number

NAME_LENGTH = 24  # longer names are shortened in the middle; the whole name is in the tooltip
CHARACTER, WIDE = 8.2, 12.4  # widths of letters in a wide font at the size of labels on a phone; WIDE those of WIDEST
WIDEST = "mwMW@%"
LABEL_GAP = 12.5


@dataclass(frozen=True)
class Figure:
    """A chart with its words; shows itself in a notebook."""

    name: str
    title: str
    text: str
    svg: str

    def standalone(self) -> str:
        """The picture as a file of its own, in light colours."""
        begin = self.svg.index(">") + 1
        style = f"<style>svg{{{palette.css_light()} background:#fff}} {asset('chart.css')}</style>"
        return self.svg[:begin].replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1) + style + self.svg[begin:]

    def save(self, path: str | Path) -> None:
        """Write the picture as an SVG file."""
        Path(path).write_text(self.standalone(), encoding="utf-8")

    def _repr_html_(self) -> str:
        # As an image: a style element in the notebook itself would reach all its other pictures.
        source = base64.b64encode(self.standalone().encode()).decode()
        image = f'<img src="data:image/svg+xml;base64,{source}" alt="{escape(self.title)}" style="max-width:640px">'
        return f"<b>{escape(self.title)}</b><p>{escape(self.text)}</p>{image}"


@lru_cache
def asset(name: str) -> str:
    """A file that comes with the lab."""
    return files("polyak.lab").joinpath("assets", name).read_text(encoding="utf-8")


def tag(name: str, *children: str, **attributes: object) -> str:
    """An element.

    Args:
        name: of the element.
        children: markup.
        attributes: escaped here; ``stroke_width`` is ``stroke-width``, ``class_`` is ``class``; left out where empty.
    """
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value != "")
    text = "".join(f' {key}="{escape(_attribute(value), quote=True)}"' for key, value in pairs)
    return f"<{name}{text}>{''.join(children)}</{name}>"


def series_group(method: str, *parts: str) -> str:
    """What belongs to one method, so that the page can make it stand out."""
    return tag("g", *parts, class_="series", data_method=method)


def _attribute(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def text(x: float, y: float, words: str, anchor: str = "start", class_: str = "") -> str:
    """A line of text; long words are whole in the tooltip."""
    short = shortened(words)
    title = tag("title", escape(words)) if short != words else ""
    return tag("text", escape(short), title, x=x, y=y, text_anchor=anchor, class_=class_)


def shortened(words: str) -> str:
    """At most :data:`NAME_LENGTH` characters, of which the end says most."""
    return words if len(words) <= NAME_LENGTH else f"{words[:6]}…{words[-(NAME_LENGTH - 7) :]}"


def text_width(names: Sequence[str]) -> float:
    """The room that the longest of some names takes."""
    return max((sum(WIDE if c in WIDEST else CHARACTER for c in shortened(name)) for name in names), default=0.0)


@dataclass(frozen=True)
class Scale:
    """Maps ``low .. high`` to ``start .. end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies; what a logarithmic scale cannot show lies far below its low end."""
        if self.log and value <= 0:
            return self.start - 10 * (self.end - self.start)
        low, at, high = (
            (math.log(v) for v in (self.low, value, self.high)) if self.log else (self.low, value, self.high)
        )
        return self.start + (self.end - self.start) * ((at - low) / (high - low) if high > low else 0.5)

    def ticks(self, count: int = 5) -> list[float]:
        """Some ``count`` round numbers between the ends."""
        if self.log and self.high > 3 * self.low:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            marks = (1, 2, 5) if last - first <= 2 else (1,)
            every = max(1, math.ceil((last - first) / count))
            made = [mark * 10.0**power for power in range(first, last + 1, every) for mark in marks]
        else:
            made = _linear_ticks(self.low, self.high, count)
        return [tick for tick in made if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9)] if self.log else made

    @property
    def words(self) -> str:
        """For the script that zooms."""
        return f"{self.low!r} {self.high!r} {'log' if self.log else 'linear'}"


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / count or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def marker(shape: str, x: float, y: float, size: float, colour: str, hollow: bool = False) -> str:
    """A marker around a point."""
    fill = "var(--card)" if hollow else colour
    look: dict[str, object] = {"fill": fill, "stroke": colour, "stroke_width": 1.4 if hollow else 0}
    if shape == "circle":  # of which a page may have ten thousand
        stroke = f' stroke="{colour}" stroke-width="1.4"' if hollow else ""
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" fill="{fill}"{stroke}/>'
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "triangle": ((0, -1.25), (1.2, 0.9), (-1.2, 0.9)),
        "diamond": ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
    }[shape]
    return tag("path", d=f"{path([(x + a * size, y + b * size) for a, b in corners])}Z", **look)


def cross(x: float, y: float, size: float, colour: str) -> str:
    """The marker of a run without a figure."""
    strokes = f"M{x - size:.1f} {y - size:.1f}l{2 * size} {2 * size}m0 {-2 * size}l{-2 * size} {2 * size}"
    return tag("path", d=strokes, stroke=colour, stroke_width=1.6, fill="none")


def path(points: Sequence[tuple[float, float]]) -> str:
    """The commands of a broken line."""
    return "".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))


def dodge(wanted: Sequence[float], low: float, high: float, gap: float = LABEL_GAP) -> list[float]:
    """Places as near as can be to the wanted ones, in their order, between ``low`` and ``high``, a ``gap`` apart."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    places = [0.0] * len(wanted)
    below = low - gap
    for rank, i in enumerate(order):  # down from the top, leaving room for those that follow
        below = max(below + gap, min(wanted[i], high - gap * (len(order) - 1 - rank)))
        places[i] = below
    return places


def axis_x(x: Scale, bottom: float, top: float, label: str, ticks: int = 5) -> str:
    """Grid lines, ticks and the label below a chart."""
    parts = []
    for tick in x.ticks(ticks):
        at = x(tick)
        parts.append(tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="gridline"))
        parts.append(tag("text", number(tick), x=at, y=bottom + 15, text_anchor="middle", class_="tick-x"))
    parts.append(tag("line", x1=x.start, x2=x.end, y1=bottom, y2=bottom, class_="axis"))
    parts.append(tag("text", escape(label), x=x.end, y=bottom + 30, text_anchor="end"))
    return "".join(parts)


def axis_y(y: Scale, left: float, right: float) -> str:
    """Grid lines and ticks beside a chart."""
    parts = []
    for tick in y.ticks():
        at = y(tick)
        parts.append(tag("line", x1=left, x2=right, y1=at, y2=at, class_="gridline"))
        parts.append(tag("text", number(tick), x=left - 6, y=at + 4, text_anchor="end", class_="tick-y"))
    return "".join(parts)


def picture(width: float, height: float, label: str, *parts: str, **attributes: object) -> str:
    """A whole picture with words for those who cannot see it."""
    box = f"0 0 {width:.0f} {height:.0f}"
    return tag("svg", *parts, viewBox=box, role="img", aria_label=label, **attributes)
