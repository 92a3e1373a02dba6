"""How methods are told apart: a colour, a dash and a marker for each, by its place in the comparison.

The colours are those of Okabe and Ito, moved as little as needed for lines and dots to stand out (3:1) from white and
from the dark card, and for every two of them to differ by at least 10 (CIEDE2000) for normal, deuteranope and
protanope eyes; a test computes both. From the ninth method on the colours repeat and dash and marker tell.
"""

from __future__ import annotations

from dataclasses import dataclass

LIGHT = ("#0b72b0", "#b0540a", "#0ca095", "#c46783", "#b28b66", "#3e9bc8", "#000000", "#b48d07")
DARK = ("#30a8f7", "#e46f2b", "#33d3a2", "#f094c1", "#eab859", "#21d9ff", "#ffffff", "#fef117")
DASHES = ("", "7 4", "2 3", "9 3 2 3")
MARKERS = ("circle", "square", "triangle", "diamond")

# name: (light, dark); text, lines and surfaces
INK = {
    "paper": ("#fbfbfa", "#131416"),
    "card": ("#ffffff", "#1b1c1f"),
    "ink": ("#1c1d1f", "#ececea"),
    "soft": ("#5c6067", "#a9adb5"),
    "line": ("#d9d9d5", "#3a3c42"),
    "grid": ("#ededea", "#292b30"),
    "band": ("#e4ecf3", "#24303a"),
    "good": ("#0b6b48", "#6fdcb4"),
    "bad": ("#a3331a", "#ff9c7e"),
}


@dataclass(frozen=True)
class Style:
    """The looks of one method: a colour as CSS says it, a dash pattern and the name of a marker."""

    colour: str
    dash: str
    marker: str


def style(place: int) -> Style:
    """The looks of the method at ``place`` in the comparison's list; they repeat after 32."""
    group = place // len(LIGHT) % len(DASHES)
    return Style(f"var(--c{place % len(LIGHT)})", DASHES[group], MARKERS[group])


def _colours() -> dict[str, tuple[str, str]]:
    return {**INK, **{f"c{i}": pair for i, pair in enumerate(zip(LIGHT, DARK, strict=True))}}


def css() -> str:
    """Declarations of every colour for both schemes; ``color-scheme`` picks one, so print and a button can too."""
    return " ".join(f"--{name}: light-dark({light}, {dark});" for name, (light, dark) in _colours().items())


def css_light() -> str:
    """The same for a picture that stands alone, in light colours."""
    return " ".join(f"--{name}: {light};" for name, (light, _) in _colours().items())
