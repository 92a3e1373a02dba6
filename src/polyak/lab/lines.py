"""Charts of lines with their names at their ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polyak.lab.palette import Style
from polyak.lab.svg import (
    LABEL_GAP,
    Scale,
    axis_x,
    axis_y,
    dodge,
    marker,
    path,
    picture,
    series_group,
    tag,
    text,
    text_width,
)
from polyak.lab.table import number

PLOT = 320.0  # width of the part of a chart that has data
TOP, BOTTOM, LEFT = 14.0, 38.0, 52.0
BANDS = 8  # more lines than this are shown without the range of their seeds


@dataclass(frozen=True)
class Series:
    """A line: its name, its looks and rows of x, y and, where there is a range, lowest and highest y."""

    name: str
    style: Style
    points: Sequence[Sequence[float]]
    stepped: bool = False


def lines(
    title: str,
    series: Sequence[Series],
    label: str,
    higher: bool,
    log: bool = False,
    target: float | None = None,
    ends: tuple[float, float] | None = None,
) -> str:
    """A line for each series, with its name at its end."""
    series = [each for each in series if each.points]
    if not series:
        return picture(LEFT + PLOT, 40, title, text(0, 24, "nothing to show yet"))
    height = max(270.0, TOP + BOTTOM + LABEL_GAP * len(series))
    low, high, log = (*ends, False) if ends else axis_ends(series, higher, log)
    x = Scale(min(p[0] for s in series for p in s.points), max(p[0] for s in series for p in s.points), 0, PLOT)
    y = Scale(low, high, height - TOP - BOTTOM, 0, log)
    inside = [_line(each, x, y, bands=len(series) <= BANDS) for each in series]
    if target is not None and low <= target <= high:
        inside.insert(0, tag("line", x1=0, x2=PLOT, y1=y(target), y2=y(target), class_="target"))
    box = {"x": LEFT, "y": TOP, "width": PLOT, "height": height - TOP - BOTTOM}
    window = {"viewBox": f"0 0 {PLOT:g} {height - TOP - BOTTOM:g}", "preserveAspectRatio": "none", "class_": "window"}
    parts = [
        axis_x(Scale(x.low, x.high, LEFT, LEFT + PLOT), height - BOTTOM, TOP, label),
        axis_y(Scale(low, high, height - BOTTOM, TOP, log), LEFT, LEFT + PLOT),
        tag("svg", *inside, **box, **window),
        _labels(series, y, target),
    ]
    width = LEFT + PLOT + 14 + text_width([each.name for each in series])
    return picture(width, height, title, *parts, class_="zoom", data_x=x.words, data_y=y.words, data_label=label)


def axis_ends(series: Sequence[Series], higher: bool, log: bool) -> tuple[float, float, bool]:
    """The axis leaves out the first fifth of a run where it would flatten what follows, and the worst few points."""
    late = sorted(p[1] for s in series for i, p in enumerate(s.points) if 5 * i >= len(s.points) - 1)
    rest = int(0.08 * len(late))
    low, high = (late[rest], late[-1]) if higher else (late[0], late[len(late) - 1 - rest])
    if log and low > 0:
        return low / 1.1, max(high * 1.1, low * 1.2), True
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room, False


def _line(series: Series, x: Scale, y: Scale, bands: bool) -> str:
    at = [(x(p[0]), y(p[1])) for p in series.points]
    parts = []
    if bands and len(series.points[0]) == 4:
        edge = [(x(p[0]), y(p[3])) for p in series.points]
        edge += [(x(p[0]), y(p[2])) for p in reversed(series.points)]
        parts.append(tag("path", d=f"{path(edge)}Z", fill=series.style.colour, class_="range"))
    if series.stepped:
        at = [corner for i, (a, b) in enumerate(at) for corner in ([(a, at[i - 1][1])] if i else []) + [(a, b)]]
    look = {"stroke": series.style.colour, "stroke_dasharray": series.style.dash, "class_": "line"}
    parts.append(tag("path", d=path(at), **look))
    if series.style.marker != "circle":  # from the ninth method on, where colours repeat
        some = at[:: max(1, len(at) // 6)]
        parts += [marker(series.style.marker, a, b, 3.2, series.style.colour) for a, b in some]
    return series_group(series.name, *parts)


def _labels(series: Sequence[Series], y: Scale, target: float | None) -> str:
    """Names at the ends of the lines, each tied to its own."""
    ends = [min(max(y(each.points[-1][1]), 0.0), y.start) for each in series]
    parts = []
    for each, end, place in zip(series, ends, dodge(ends, 0.0, y.start), strict=True):
        tie = path([(LEFT + PLOT, TOP + end), (LEFT + PLOT + 9, TOP + place)])
        line = tag("path", d=tie, stroke=each.style.colour, class_="tie")
        name = text(LEFT + PLOT + 12, TOP + place + 4, each.name, "start", "name")
        parts.append(series_group(each.name, line, name))
    if target is not None and y.low <= target <= y.high:
        parts.append(text(LEFT + 4, TOP + y(target) - 4, f"target {number(target)}", "start", "halo"))
    return tag("g", *parts, class_="labels")
