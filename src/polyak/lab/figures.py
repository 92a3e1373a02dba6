"""The charts of a comparison, each a :class:`~polyak.lab.svg.Figure` that the page and a notebook show alike."""

from __future__ import annotations

from html import escape

from polyak.declare import Range
from polyak.lab import palette, table
from polyak.lab.evidence import EDGE
from polyak.lab.lines import BANDS, BOTTOM, LEFT, PLOT, TOP, Series, axis_ends, lines
from polyak.lab.method_report import MethodReport, TrialReport
from polyak.lab.palette import Style
from polyak.lab.report import ProblemReport, Report
from polyak.lab.statistics import SCORED
from polyak.lab.svg import (
    Figure,
    Scale,
    axis_x,
    axis_y,
    cross,
    marker,
    path,
    picture,
    series_group,
    tag,
    text,
    text_width,
)

ROW = 22.0
FAR = 6.0  # intervals that reach this many times further than the median one leave the frame
CLOUD = (210.0, 128.0)


def forest(problem: ProblemReport) -> Figure:
    """Paired differences to the reference with their intervals, the seeds behind them and the margin."""
    described, methods = problem.described, problem.methods
    left, right = text_width([m.method for m in methods]) + 12, 88.0
    height = TOP + 12 + ROW * len(methods) + BOTTOM
    x = Scale(*_limits(problem), left, left + PLOT)
    band = (max(left, x(-problem.margin)), min(left + PLOT, x(problem.margin)))
    parts = [
        tag("rect", x=band[0], width=band[1] - band[0], y=TOP + 6, height=height - TOP - 6 - BOTTOM, class_="band"),
        axis_x(x, height - BOTTOM, TOP + 6, f"difference in {described.metric}"),
        tag("line", x1=x(0), x2=x(0), y1=TOP + 6, y2=height - BOTTOM, class_="zero"),
        text(left, TOP, "← worse"),
        text(left + PLOT, TOP, "better →", "end"),
    ]
    for row, method in enumerate(methods):
        middle = TOP + 12 + ROW * (row + 0.5)
        name = text(left - 8, middle + 4, method.method, "end", "name")
        called = text(left + PLOT + 6, middle + 4, _call(method, described.reference), "start", f"call {_word(method)}")
        parts.append(series_group(method.method, name, _interval(problem, method, x, middle), called))
    words = f"Mean of pairs with the same seed, and its {described.percent} interval. Small dots: each seed. "
    words += f"Band: differences within {table.number(problem.margin)} do not matter."
    title = f"Difference to {described.reference}"
    return Figure("forest", title, words, picture(left + PLOT + right, height, f"{title}: {problem.sentence}", *parts))


def _word(method: MethodReport) -> str:
    return method.judgement.call if method.judgement else ""


def _call(method: MethodReport, reference: str) -> str:
    if method.method == reference:
        return "reference"
    return method.judgement.call if method.judgement else "no result"


def _limits(problem: ProblemReport) -> tuple[float, float]:
    """How far the axis goes to either side; a hopeless method must not flatten all others."""
    found = [m.judgement for m in problem.methods if m.judgement]
    ends = [(j.low, j.high) for j in found if j.low is not None and j.high is not None]
    reach = sorted(max(abs(low), abs(high)) for low, high in ends)
    far = FAR * reach[len(reach) // 2] if reach else 0.0
    least = 1.5 * problem.margin or 0.1 * max(reach, default=1.0) or 1.0
    low = min((max(low, -far) for low, _ in ends), default=0.0)
    high = max((min(high, far) for _, high in ends), default=0.0)
    return 1.06 * min(low, -least), 1.06 * max(high, least)


def _interval(problem: ProblemReport, method: MethodReport, x: Scale, y: float) -> str:
    looks, found = palette.style(method.place), method.judgement
    if method.method == problem.described.reference:
        return marker(looks.marker, x(0), y, 4.2, looks.colour)
    if found is None or found.difference is None:
        return ""
    # An end that is unknown or infinite lies outside the frame.
    low, high = (x.start if found.low is None else x(found.low)), (x.end if found.high is None else x(found.high))
    ends = [min(max(end, x.start), x.end) for end in (low, high)]
    dots = [x(d) for d in _paired(problem, method)]
    parts = [tag("circle", cx=at, cy=y + 6, r=1.8, fill=looks.colour) for at in dots if x.start <= at <= x.end]
    parts.append(tag("line", x1=ends[0], x2=ends[1], y1=y, y2=y, stroke=looks.colour, stroke_width=2.2))
    parts += [
        _arrow(end, y, looks.colour, side) for end, side in zip((x.start, x.end), (-1, 1), strict=True) if end in ends
    ]
    if x.start <= (at := x(found.difference)) <= x.end:
        parts.append(marker(looks.marker, at, y, 4.2, looks.colour))
    chance = table.number(found.probability_of_improvement, 2)
    said = f"{method.method}: {table.difference(found)}, probability of improvement {chance}"
    return tag("g", tag("title", escape(said)), *parts)


def _arrow(x: float, y: float, colour: str, side: int) -> str:
    """Says that an interval goes on outside the frame."""
    return tag("path", d=f"{path([(x, y), (x - 7 * side, y - 4), (x - 7 * side, y + 4)])}Z", fill=colour)


def _paired(problem: ProblemReport, method: MethodReport) -> list[float]:
    """The differences of each seed, positive where the method is better."""
    reference = next((m for m in problem.methods if m.method == problem.described.reference), method)
    sign = 1 if problem.described.higher_is_better else -1
    both = [(value, reference.metrics.get(seed)) for seed, value in method.metrics.items()]
    return [sign * (a - b) for a, b in both if a is not None and b is not None]


def curves(problem: ProblemReport, which: str = "validation") -> Figure:
    """The validation metric or the training loss over the steps.

    Args:
        problem: the problem.
        which: ``"validation"`` or ``"train"``.
    """
    described = problem.described
    series = [Series(m.method, palette.style(m.place), getattr(m, f"{which}_curve")) for m in problem.methods]
    validation = which == "validation"
    title = f"Validation {described.metric}" if validation else "Training loss"
    higher = validation and described.higher_is_better
    svg = lines(title, series, "steps", higher, log=not higher, target=described.target if validation else None)
    few = len(series) <= BANDS
    return Figure(which, title, f"Median over the seeds{', and their range' if few else ''}.", svg)


def expected(problem: ProblemReport) -> Figure:
    """What tuning could be expected to find with fewer trials."""
    series = [Series(m.method, palette.style(m.place), m.expected) for m in problem.methods]
    higher = problem.described.higher_is_better
    title = f"Validation {problem.described.metric} after k trials"
    words = "What tuning with k trials is expected to find, on the tuning seed."
    return Figure("expected", title, words, lines(title, series, "trials", higher, log=not higher))


def profile(report: Report) -> Figure:
    """Performance profiles over the problems."""
    most = 1.15 * max((ratio for corners in report.profiles.values() for ratio, _ in corners), default=2.0)
    series = [
        Series(name, palette.style(report.methods.index(name)), [*corners, (most, corners[-1][1])], stepped=True)
        for name, corners in report.profiles.items()
    ]
    title, x = "Performance profile", "steps to target, as a multiple of the best method's"
    words = "The share of problems on which a method met the target within a multiple of the soonest method's steps. "
    words += f"The score is the area under it from 1 to {SCORED:g}, over that width."
    return Figure("profile", title, words, lines(title, series, x, True, ends=(0.0, 1.02)))


def costs(problem: ProblemReport) -> Figure:
    """The time of a step and the optimizer's part of it."""
    methods = [m for m in problem.methods if m.timing["step_ms"]]
    title = "Time of a step"
    said = "the darker part is the optimizer's. Behind it: state in bytes per parameter."
    words = f"Median {table.timed(problem)}, in milliseconds; {said}"
    if not methods:
        return Figure("costs", title, words, picture(LEFT + PLOT, 40, title, text(0, 24, "nothing to show yet")))
    left, height = text_width([m.method for m in methods]) + 12, TOP + ROW * len(methods) + BOTTOM
    x = Scale(0.0, max(m.timing["step_ms"] or 0.0 for m in methods), left, left + PLOT)
    parts = [axis_x(x, height - BOTTOM, TOP, "ms")]
    for row, method in enumerate(methods):
        parts.append(_cost_row(problem, method, x, TOP + ROW * row))
    return Figure("costs", title, words, picture(left + PLOT + 110, height, title, *parts))


def _cost_row(problem: ProblemReport, method: MethodReport, x: Scale, top: float) -> str:
    colour, step, own = palette.style(method.place).colour, method.timing["step_ms"], method.timing["optimizer_ms"]
    said = f"{table.number(step, 3)} ms"
    if method.state_bytes_per_parameter is not None:
        said += f", {table.number(method.state_bytes_per_parameter, 3)} B"
    bars = [(step or 0.0, 0.3), (own or 0.0, 1.0)]
    return series_group(
        method.method,
        text(x.start - 8, top + 15, method.method, "end", "name"),
        *(
            tag(
                "rect",
                x=x.start,
                y=top + 5,
                width=x(value) - x.start,
                height=ROW - 9,
                fill=colour,
                fill_opacity=opacity,
            )
            for value, opacity in bars
        ),
        text(x(step or 0.0) + 6, top + 15, said, "start", "halo"),
    )


def tuning(problem: ProblemReport) -> list[Figure]:
    """For each method and each range that was searched, what every trial came to."""
    values = [t.first for m in problem.methods for t in m.trials if t.first is not None]
    if not values:
        return []
    higher = problem.described.higher_is_better
    positive = not higher and min(values) > 0 and max(values) > 20 * min(values)
    ordered = sorted(values, reverse=not higher)
    # The worst fifth is drawn at the frame.
    some = [Series("", palette.style(0), [(0, v)]) for v in ordered[len(ordered) // 5 :]]
    low, high, log = axis_ends(some, higher, positive)
    y = Scale(low, high, CLOUD[1] - 30, 10, log)
    return [
        _cloud(problem, method, name, dimension, y)
        for method in problem.methods
        for name, dimension in problem.described.spaces.get(method.method, {}).items()
        if isinstance(dimension, Range) and any(name in t.setting for t in method.trials)
    ]


def _cloud(problem: ProblemReport, method: MethodReport, name: str, dimension: Range, y: Scale) -> Figure:
    looks, (width, height) = palette.style(method.place), CLOUD
    x = Scale(dimension.low, dimension.high, 44, width - 10, dimension.log and dimension.low > 0)
    shade = EDGE * (x.end - x.start)
    edge = name in method.edges
    parts = [
        tag("rect", x=at, y=4, width=shade, height=height - 28, class_="edge hit" if edge else "edge")
        for at in (x.start, x.end - shade)
    ]
    parts += [axis_x(x, height - 24, 4, "", ticks=3), axis_y(y, 44, width - 10)]
    for trial in method.trials:
        if name in trial.setting:
            at = min(max(x(trial.setting[name]), x.start), x.end)
            parts.append(_trial(at, y, trial, looks, trial.setting == method.setting))
    title = f"{method.method}: {name}"
    words = f"{table.number(dimension.low)} to {table.number(dimension.high)}"
    words += f"; chosen {table.number(method.setting[name])}" if method.setting and name in method.setting else ""
    words += ", at the edge of its range" if edge else ""
    return Figure(
        "tuning", title, words, picture(width, height, f"{title}, {words}", *parts, data_method=method.method)
    )


def _trial(x: float, y: Scale, trial: TrialReport, looks: Style, chosen: bool) -> str:
    """The tuning seed filled, other seeds hollow, a cross for no figure, a ring around the chosen setting."""
    values = list(trial.validation.values())
    first, *again = [None if v is None else min(max(y(v), y.end), y.start) for v in values]
    parts = [marker("circle", x, at, 2.6, looks.colour, hollow=True) for at in again if at is not None]
    parts.append(
        cross(x, y.start - 4, 3, looks.colour) if first is None else marker("circle", x, first, 3, looks.colour)
    )
    if chosen and first is not None:
        parts.append(tag("circle", cx=x, cy=first, r=6.5, class_="chosen"))
    shown = ", ".join("no figure" if v is None else table.number(v) for v in values)
    ended = ", stopped early" if trial.status == "stopped" else ""
    return f"<g><title>{escape(f'{table.setting(trial.setting)}: {shown}{ended}')}</title>{''.join(parts)}</g>"


def swatch(place: int) -> str:
    """The looks of the method at ``place`` in the comparison's list, for tables and legends."""
    looks = palette.style(place)
    line = tag("path", d="M1 6H25", stroke=looks.colour, stroke_width=2.2, stroke_dasharray=looks.dash)
    return tag(
        "svg",
        line,
        marker(looks.marker, 13, 6, 3.6, looks.colour),
        viewBox="0 0 26 12",
        class_="swatch",
        aria_hidden="true",
    )
