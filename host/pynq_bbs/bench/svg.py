# SPDX-License-Identifier: Apache-2.0
"""Charts as inline SVG. What is modelled is hatched and dashed, what is measured is filled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 960
_LABEL = 300  # of the names beside bars
_VALUE = 190  # of the figures behind them
_ROW = 26
_PARTS = 8  # classes that the page's style has colours for
_ROOM = 1.25  # of the longest bar, for marks beside it

#: The pattern that modelled bars are filled with; once in a page.
PATTERNS = (
    '<svg width="0" height="0" aria-hidden="true"><defs><pattern id="hatch" width="6" height="6" '
    'patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" class="hatch-ground"/><rect width="2.5" height="6" '
    'class="hatch-line"/></pattern></defs></svg>'
)


@dataclass(frozen=True)
class Bar:
    """A named value with its words; `role` is a class of the page's style. `low` to `high` is drawn
    over the bar, `mark` as a tick, where it is not so far out that the bars would be tiny."""

    name: str
    value: float
    text: str
    role: str
    low: float | None = None
    high: float | None = None
    mark: float | None = None


@dataclass(frozen=True)
class Point:
    """A layer, or (`whole`) all of them, on a roofline."""

    name: str
    macs_per_byte: float
    macs_per_second: float
    whole: bool = False


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Bars from zero, one below the other."""
    longest = _ROOM * max(max(bar.value, bar.high or 0) for bar in rows)
    scale = (_WIDTH - _LABEL - _VALUE) / longest
    parts = []
    for index, bar in enumerate(rows):
        y = 4 + index * _ROW
        middle = y + _ROW / 2 - 3
        parts.append(_text(_LABEL - 10, middle + 4, bar.name, "end", bar.role))
        width = max(bar.value * scale, 1)
        parts.append(
            f'<rect class="bar {bar.role}" x="{_LABEL}" y="{y}" width="{width:.1f}" '
            f'height="{_ROW - 8}"><title>{escape(bar.name)}: {escape(bar.text)}</title></rect>'
        )
        if bar.low is not None and bar.high is not None:
            parts.append(_line(_LABEL + bar.low * scale, middle, _LABEL + bar.high * scale, middle))
        end = max(bar.value, bar.high or 0)
        if bar.mark is not None and bar.mark <= longest:
            x = _LABEL + bar.mark * scale
            parts.append(_line(x, y + 3, x, y + _ROW - 11))
            end = max(end, bar.mark)
        parts.append(_text(_LABEL + end * scale + 8, middle + 4, bar.text, "start", bar.role))
    return _svg(title, 8 + len(rows) * _ROW, "".join(parts))


def stacked(title: str, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Shares of a whole, each row as long as the others: (name, [(part, value)])."""
    names = list(dict.fromkeys(part for _, parts in rows for part, _ in parts))
    width, drawn = _WIDTH - _LABEL - 10, []
    for index, (name, parts) in enumerate(rows):
        y, x = 4 + index * _ROW, float(_LABEL)
        drawn.append(_text(_LABEL - 10, y + _ROW / 2 + 1, name, "end"))
        whole = sum(value for _, value in parts) or 1.0
        for part, value in parts:
            share = value / whole
            drawn.append(
                f'<rect class="part{names.index(part)}" x="{x:.1f}" y="{y}" '
                f'width="{share * width:.1f}" height="{_ROW - 8}">'
                f"<title>{escape(part)}: {share:.1%}</title></rect>"
            )
            x += share * width
    y, x = 14 + len(rows) * _ROW, float(_LABEL)
    for place, part in enumerate(names):
        drawn.append(f'<rect class="part{place}" x="{x:.0f}" y="{y}" width="12" height="12"/>')
        drawn.append(_text(x + 17, y + 10, part, "start"))
        x += 34 + 8 * len(part)
    return _svg(title, y + 22, "".join(drawn))


def roofline(
    title: str,
    points: Sequence[Point],
    macs_per_second: float,
    bytes_per_second: float,
    *,
    modelled: bool,
) -> str:
    """Products a second over products a byte, both logarithmic, below what can be reached."""
    left, bottom, top, right = 90.0, 345.0, 35.0, _WIDTH - 250.0
    ridge = macs_per_second / bytes_per_second
    every = [p.macs_per_byte for p in points] + [ridge]
    x_from, x_to = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)) + 0.2)
    heights = [p.macs_per_second for p in points] + [macs_per_second]
    y_from, y_to = math.floor(math.log10(min(heights))), math.ceil(math.log10(max(heights)) + 0.1)

    def x(value: float) -> float:
        return left + (math.log10(value) - x_from) / (x_to - x_from) * (right - left)

    def y(value: float) -> float:
        return bottom - (math.log10(value) - y_from) / (y_to - y_from) * (bottom - top)

    drawn = []
    for power in range(x_from, x_to + 1):
        drawn.append(_line(x(10.0**power), top, x(10.0**power), bottom, "grid"))
        drawn.append(_text(x(10.0**power), bottom + 18, f"{10.0**power:g}", "middle"))
    for power in range(y_from, y_to + 1):
        drawn.append(_line(left, y(10.0**power), right, y(10.0**power), "grid"))
        drawn.append(_text(left - 8, y(10.0**power) + 4, f"{1e-9 * 10.0**power:g}", "end"))
    start = max(10.0**x_from, 10.0**y_from / bytes_per_second)
    roof = [(start, start * bytes_per_second), (ridge, macs_per_second)]
    roof.append((10.0**x_to, macs_per_second))
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in roof)
    kind = "modelled" if modelled else "measured"
    drawn.append(f'<polyline class="roof {kind}" points="{path}"/>')
    drawn.append(_text(right + 8, y(macs_per_second) + 4, f"{1e-9 * macs_per_second:.3g} GMAC/s"))
    drawn.append(
        _text(right + 8, y(macs_per_second) + 20, f"{1e-9 * bytes_per_second:.3g} GB/s aslant")
    )
    for point in points:
        size = 8 if point.whole else 4.5
        drawn.append(
            f'<circle class="point {kind}{" whole" * point.whole}" r="{size}" '
            f'cx="{x(point.macs_per_byte):.1f}" cy="{y(point.macs_per_second):.1f}">'
            f"<title>{escape(point.name)}: {1e-9 * point.macs_per_second:.3g} GMAC/s at "
            f"{point.macs_per_byte:.3g} MAC/byte</title></circle>"
        )
    drawn.append(_text((left + right) / 2, bottom + 38, "executed products a byte", "middle"))
    drawn.append(_text(left - 80, top - 18, f"executed GMAC/s, {kind}", "start"))
    return _svg(title, bottom + 50, "".join(drawn))


def curves(
    title: str,
    series: Sequence[tuple[str, Sequence[tuple[float, float, str]]]],
    x_label: str,
    y_label: str,
) -> str:
    """Named curves through their points (x, y, words), both axes linear."""
    left, bottom, top, right = 70.0, 345.0, 35.0, _WIDTH - 210.0
    points = [point for _, own in series for point in own]
    x_ticks = _ticks([x for x, _, _ in points])
    y_ticks = _ticks([y for _, y, _ in points])

    def x(value: float) -> float:
        return left + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (right - left)

    def y(value: float) -> float:
        return bottom - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top)

    drawn = []
    for tick in x_ticks:
        drawn.append(_line(x(tick), top, x(tick), bottom, "grid"))
        drawn.append(_text(x(tick), bottom + 18, f"{tick:g}", "middle"))
    for tick in y_ticks:
        drawn.append(_line(left, y(tick), right, y(tick), "grid"))
        drawn.append(_text(left - 8, y(tick) + 4, f"{tick:g}", "end"))
    for place, (name, own) in enumerate(series):
        part, dashes = (
            f"part{(3 + 3 * place) % _PARTS}",
            f"{4 + 3 * place} {place}" if place else "none",
        )
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b, _ in own)
        drawn.append(f'<polyline class="curve" stroke-dasharray="{dashes}" points="{path}"/>')
        for a, b, words in own:
            drawn.append(
                f'<circle class="{part}" r="5" cx="{x(a):.1f}" cy="{y(b):.1f}">'
                f"<title>{escape(words)}</title></circle>"
            )
        drawn.append(f'<circle class="{part}" r="5" cx="{right + 22}" cy="{top + 20 * place}"/>')
        drawn.append(_text(right + 34, top + 20 * place + 4, name))
    drawn.append(_text((left + right) / 2, bottom + 38, x_label, "middle"))
    drawn.append(_text(10, top - 18, y_label, "start"))
    return _svg(title, max(bottom + 50, top + 20 * len(series)), "".join(drawn))


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, evenly apart, from below the least to above the largest; two at least."""
    low, high = min(values), max(values)
    rough = (high - low) / 6 or abs(high) / 6 or 1.0
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = power * next(
        factor for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9)
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _svg(title: str, height: float, content: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{content}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", role: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{role}">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, role: str = "mark") -> str:
    return f'<line class="{role}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
