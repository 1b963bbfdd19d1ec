"""The SVG pictures of the profile report, as text. Colours are classes that the page's style sheet defines.

Coordinates are CSS pixels at the width for which a picture is drawn; nothing lies outside its viewBox.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

WIDTH = 960.0
_CHARACTER = 6.6  # width of one character of an 11-pixel label, on the generous side
_LABELS = 96.0  # left of bars and timelines, for the names of rows
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


def text(value: object) -> str:
    """`value` for HTML and SVG: escaped, and without what XML or UTF-8 cannot hold."""
    characters = str(value).encode("utf-8", "replace").decode("utf-8")
    return html.escape(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", characters))


def number(value: float) -> str:
    """Three significant digits, at most four decimals: 0.0123, 1.20, 345, 12,300."""
    rounded = float(f"{value:.3g}")
    if rounded >= 1e9:
        return f"{rounded:.3g}"
    if 0 < rounded < 1e-4:
        return "<0.0001"
    decimals = 2 - math.floor(math.log10(rounded)) if rounded else 0
    return f"{rounded:,.{min(max(decimals, 0), 4)}f}"


def quantity(value: float, unit: str) -> str:
    """With the fitting prefix: 1.2 TFLOP/s."""
    size, prefix = _prefix(value)
    return f"{number(value / size)} {prefix}{unit}"


def _prefix(value: float) -> tuple[float, str]:
    return next((pair for pair in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= pair[0]), (1.0, ""))


@dataclass(frozen=True)
class Box:
    """A coloured piece of a row: it begins at `start` and is `size` long, in the unit of the picture's axis.

    Without room for the label its last word stands there, or nothing; the title shows when a mouse points at the box.
    """

    start: float
    size: float
    label: str
    title: str
    colour: str


@dataclass(frozen=True)
class Row:
    """Boxes beside each other, with a name on the left and a text on the right."""

    name: str
    boxes: tuple[Box, ...]
    end: str = ""


@dataclass(frozen=True)
class Dot:
    """A layer under the roof: `x` in FLOP per byte, `y` in FLOP per second, `weight` for its area."""

    x: float
    y: float
    weight: float
    title: str
    colour: str


def bars(rows: Sequence[Row], total: float) -> str:
    """Stacked bars of boxes, one row under the other; `total` is the value at the right edge."""
    end = max(len(row.end) for row in rows) * _CHARACTER + 12
    scale = (WIDTH - _LABELS - end) / (total or 1.0)
    parts = [part for index, row in enumerate(rows) for part in _row(row, index * 24.0 + 1, 18.0, scale)]
    for index, row in enumerate(rows):
        parts.append(_label(WIDTH - end + 8, index * 24.0 + 14, row.end))
    return _svg(WIDTH, 24.0 * len(rows), parts)


def timeline(rows: Sequence[Row], total: float) -> str:
    """Rows over one axis of milliseconds from 0 to `total`. A row without a name belongs to the one above it."""
    scale = (WIDTH - _LABELS - 24) / (total or 1.0)
    parts: list[str] = []
    y = 0.0
    for row in rows:
        y += 12 if row.name and y else 0
        parts += _row(row, y + 1, 22.0, scale)
        y += 26
    ticks = [(tick, _LABELS + tick * scale) for tick in _ticks(total)]
    grid = [_line(x, 0, x, y + 4, "grid") for _, x in ticks]
    numbers = [_label(x, y + 18, f"{tick:g}", "middle") for tick, x in ticks]
    return _svg(WIDTH, y + 26, [*grid, *parts, *numbers, _label(_LABELS - 8, y + 18, "ms", "end")])


def _row(row: Row, y: float, height: float, scale: float) -> Iterator[str]:
    yield _label(_LABELS - 8, y + height / 2 + 4, _shortened(row.name, _LABELS - 8), "end")
    for box in row.boxes:
        x = min(_LABELS + box.start * scale, WIDTH - 0.4)
        width = min(max(box.size * scale, 0.4), WIDTH - x)  # what took no time is still there to be pointed at
        gap = 1.0 if width > 4 else 0.0
        yield _rect(x, y, width - gap, height, box.colour, box.title)
        yield _label(x + 5, y + height / 2 + 4, _fitting(box.label, width - 12), "start", "inside")


def spreads(old: tuple[float, float, float], new: tuple[float, float, float]) -> str:
    """Two lines from the first to the last value with a mark at the middle one, over each other at one scale."""
    low, high = min(*old, *new), max(*old, *new)
    scale = 132 / (high - low or 1.0)
    parts = []
    for y, (first, middle, last), colour in ((6.0, old, "before"), (16.0, new, "now")):
        x = 4 + (first - low) * scale
        parts.append(_rect(x, y - 2, max((last - first) * scale, 0.5), 4, colour))
        parts.append(_rect(3 + (middle - low) * scale, y - 5, 2, 10, colour))
    return _svg(140, 22, parts, "spread")


def roofline(dots: Sequence[Dot], beside: Sequence[Dot], flat: Mapping[str, float], bandwidth: float) -> str:
    """FLOP per second over FLOP per byte, both logarithmic, under the roofs; a dot's area is its weight.

    The axes and the areas are those of a picture with the dots `beside` too, so that pictures can be compared.

    Args:
        flat: FLOP per second of each flat roof, by its name.
        bandwidth: bytes per second, the slanted roof.
    """
    every = [*dots, *beside]
    ridges = [peak / bandwidth for peak in flat.values()]
    across = _Decades.of([min(ridges) / 10, max(ridges) * 10, *(dot.x for dot in every)], 70.0, 540.0)
    up = _Decades.of([*flat.values(), *(dot.y for dot in every)], 340.0, 20.0)
    parts = [*_log_axes(across, up), *_roofs(across, up, flat, bandwidth)]
    heaviest = max((dot.weight for dot in every), default=0.0) or 1.0
    for dot in sorted(dots, key=lambda dot: -dot.weight):
        radius = max(14 * math.sqrt(dot.weight / heaviest), 1.5)
        place = f'cx="{_n(across.pixel(dot.x))}" cy="{_n(up.pixel(dot.y))}" r="{_n(radius)}"'
        parts.append(f'<circle {place} class="{dot.colour}"><title>{text(dot.title)}</title></circle>')
    return _svg(560, 380, parts)


def _roofs(across: _Decades, up: _Decades, flat: Mapping[str, float], bandwidth: float) -> Iterator[str]:
    right = across.pixel(across.high)
    for name, peak in flat.items():
        yield _label(right, up.pixel(peak) - 6, f"{name} peak", "end")
        yield _line(across.pixel(peak / bandwidth), up.pixel(peak), right, up.pixel(peak))
    highest, slope = max(flat.values()), max(across.low, up.low / bandwidth)  # where the slanted one comes into sight
    x = across.pixel(highest / bandwidth)
    yield _line(across.pixel(slope), up.pixel(slope * bandwidth), x, up.pixel(highest))


@dataclass(frozen=True)
class _Decades:
    """A logarithmic axis over whole decades, from the pixel `first` to the pixel `last`."""

    low: float
    high: float
    first: float
    last: float

    @classmethod
    def of(cls, values: Iterable[float], first: float, last: float) -> _Decades:
        exponents = [math.log10(value) for value in values]
        low, high = math.floor(min(exponents)), math.ceil(max(exponents))
        return cls(10.0**low, 10.0 ** max(high, low + 1), first, last)

    def pixel(self, value: float) -> float:
        share = math.log10(value / self.low) / math.log10(self.high / self.low)
        return self.first + min(max(share, 0.0), 1.0) * (self.last - self.first)

    def ticks(self) -> list[float]:
        low, high = round(math.log10(self.low)), round(math.log10(self.high))
        return [10.0**exponent for exponent in range(low, high + 1, (high - low) // 8 + 1)]


def _log_axes(across: _Decades, up: _Decades) -> Iterator[str]:
    for tick in across.ticks():
        x = across.pixel(tick)
        yield _line(x, up.first, x, up.last, "grid")
        yield _label(x, up.first + 16, f"{tick:g}", "middle")
    for tick in up.ticks():
        y = up.pixel(tick)
        size, prefix = _prefix(tick)
        yield _line(across.first, y, across.last, y, "grid")
        yield _label(across.first - 6, y + 4, f"{tick / size:g} {prefix}", "end")
    yield _label((across.first + across.last) / 2, up.first + 34, "FLOP per byte", "middle")
    yield _label(2, up.last - 8, "FLOP/s")


def histogram(values: Sequence[float], marks: Sequence[tuple[str, float]], end: float) -> str:
    """How many of `values` (milliseconds, up to `end`) lie where, with named lines at `marks`."""
    low, bins = min(values), min(2 * math.ceil(math.sqrt(len(values))), 48)
    width = (end - low) / bins or 1.0
    counts = [0] * bins
    for value in values:
        if value <= end:
            counts[min(int((value - low) / width), bins - 1)] += 1
    step = (WIDTH - 60) / bins
    parts = []
    for index, count in enumerate(counts):
        height = 130.0 * count / (max(counts) or 1)
        title = f"{number(low + index * width)} to {number(low + (index + 1) * width)} ms: {count} frames"
        if count:
            parts.append(_rect(30 + index * step, 190 - height, step - 1.5, height, "fp32", title))
    for row, (name, value) in enumerate(marks):  # each at its own height: they may be close to each other
        x = 30 + min(max((value - low) / width, 0.0), bins) * step
        label = f"{name} {number(value)} ms"
        fits = x + len(label) * _CHARACTER + 4 < WIDTH
        parts.append(_line(x, 6 + row * 16, x, 190))
        parts.append(_label(x + 4 if fits else x - 4, 16 + row * 16, label, "start" if fits else "end"))
    for value, anchor in ((low, "start"), (low + bins * width, "end")):
        x = 30 if anchor == "start" else WIDTH - 30
        parts.append(_label(x, 206, f"{number(value)} ms", anchor))
    return _svg(WIDTH, 214, [_line(30, 190, WIDTH - 30, 190, "grid"), *parts])


def _ticks(total: float) -> list[float]:
    """About eight round numbers from 0 to `total`."""
    if total <= 0:
        return [0.0]
    magnitude = 10.0 ** math.floor(math.log10(total / 8))
    step = next(magnitude * factor for factor in (1, 2, 5, 10, 20) if total / (magnitude * factor) <= 8)
    return [step * index for index in range(int(total / step) + 1)]


def _fitting(label: str, width: float) -> str:
    """All of it, its last word, its beginning and end, or nothing."""
    room = int(width / _CHARACTER)
    last = label.split(" ")[-1]
    if len(last) <= room:
        return label if len(label) <= room else last
    return _shortened(label, width) if room >= 10 else ""


def _shortened(label: str, width: float) -> str:
    """Without its middle: stages differ at the beginning, precisions at the end."""
    room = int(width / _CHARACTER)
    return label if len(label) <= room else f"{label[: room - 6]}…{label[-5:]}"


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _rect(x: float, y: float, width: float, height: float, colour: str, title: str = "") -> str:
    place = f'x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"'
    return f'<rect {place} class="{colour}"><title>{text(title)}</title></rect>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "line") -> str:
    return f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{kind}"/>'


def _label(x: float, y: float, label: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}" class="{kind}">{text(label)}</text>' if label else ""


def _svg(width: float, height: float, parts: Iterable[str], kind: str = "picture") -> str:
    return f'<svg class="{kind}" viewBox="0 0 {_n(width)} {_n(height)}" role="img">{"".join(parts)}</svg>\n'
