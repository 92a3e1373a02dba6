"""Colours: far enough apart for every eye, and strong enough on their ground."""

import itertools
import math

import pytest

from polyak.lab import palette

# Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB.
EYES = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
}
TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.072175), (0.0193339, 0.119192, 0.9503041))
WHITE = (0.95047, 1.0, 1.08883)


def times(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def linear(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]


def lab(colour, eye):
    seen = [min(1.0, max(0.0, v)) for v in times(EYES[eye], linear(colour))]
    relative = [v / w for v, w in zip(times(TO_XYZ, seen), WHITE, strict=True)]
    x, y, z = (v ** (1 / 3) if v > (6 / 29) ** 3 else v / (3 * (6 / 29) ** 2) + 4 / 29 for v in relative)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def ciede2000(first, second):
    (l1, a1, b1), (l2, a2, b2) = first, second
    mean = (math.hypot(a1, b1) + math.hypot(a2, b2)) / 2
    g = 0.5 * (1 - math.sqrt(mean**7 / (mean**7 + 25**7)))
    a1, a2 = a1 * (1 + g), a2 * (1 + g)
    c1, c2 = math.hypot(a1, b1), math.hypot(a2, b2)
    h1, h2 = math.degrees(math.atan2(b1, a1)) % 360, math.degrees(math.atan2(b2, a2)) % 360
    turn = 0.0 if c1 * c2 == 0 else (h2 - h1 + 180) % 360 - 180
    dl, dc, dh = l2 - l1, c2 - c1, 2 * math.sqrt(c1 * c2) * math.sin(math.radians(turn / 2))
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    hue = h1 + h2 if c1 * c2 == 0 else (h1 + turn / 2) % 360
    t = 1 - 0.17 * cos(hue - 30) + 0.24 * cos(2 * hue) + 0.32 * cos(3 * hue + 6) - 0.20 * cos(4 * hue - 63)
    sl = 1 + 0.015 * (light - 50) ** 2 / math.sqrt(20 + (light - 50) ** 2)
    sc, sh = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    rt = (
        -2
        * math.sqrt(chroma**7 / (chroma**7 + 25**7))
        * math.sin(math.radians(60 * math.exp(-(((hue - 275) / 25) ** 2))))
    )
    return math.sqrt((dl / sl) ** 2 + (dc / sc) ** 2 + (dh / sh) ** 2 + rt * (dc / sc) * (dh / sh))


def cos(degrees):
    return math.cos(math.radians(degrees))


def contrast(a, b):
    high, low = sorted((times(TO_XYZ, linear(colour))[1] for colour in (a, b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [  # of the published test data of Sharma, Wu and Dalal (2005)
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (58, 24, 15), 19.4535),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((50, -1, 2), (50, 0, 0), 2.3669),
    ],
)
def test_the_distance_itself(first, second, distance):
    assert ciede2000(first, second) == pytest.approx(distance, abs=1e-4)


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_every_two_colours_differ(colours, eye):
    pairs = {(a, b): ciede2000(lab(a, eye), lab(b, eye)) for a, b in itertools.combinations(colours, 2)}
    assert min(pairs.values()) >= 10, min(pairs, key=pairs.get)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(scheme):
    """WCAG 2.2 AA: 4.5 for text, 3 for lines and dots."""
    ink = {name: pair[scheme] for name, pair in palette.INK.items()}
    for text in ("ink", "soft", "good", "bad"):
        for ground in ("card", "paper", "grid", "band"):
            assert contrast(ink[text], ink[ground]) >= 4.5, (text, ground)
    for colour in (palette.LIGHT, palette.DARK)[scheme]:
        assert contrast(colour, ink["card"]) >= 3, colour


def test_the_first_32_methods_look_different():
    assert len({palette.style(place) for place in range(32)}) == 32
    assert all(palette.style(place).dash == "" for place in range(8))


def test_every_colour_is_declared_for_both_schemes():
    for name in ("ink", "card", "c0", "c7"):
        assert f"--{name}: light-dark(#" in palette.css() and f"--{name}: #" in palette.css_light()
