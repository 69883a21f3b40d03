"""Line and bar charts as inline SVG, in colours of the page's style sheet; no script, no library.

Curves of any length are thinned to what a screen can show, spikes kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, NamedTuple

MAX_POINTS = 600
"""Of a drawn line: more than one a pixel shows nothing more."""
MAX_HINTS = 120
"""Places of a chart that say their values when pointed at."""
WIDTH, HEIGHT = 520, 230
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 28


class Point(NamedTuple):
    """A step and a value."""

    x: float
    y: float


@dataclass(frozen=True)
class Series:
    """One curve."""

    name: str
    points: Sequence[Point]
    color: int = 0
    """Number of a colour of the page."""
    style: Literal["line", "faint", "dots"] = "line"


def points(steps: Sequence[float], values: Sequence[float]) -> list[Point]:
    """Return the points of a column; what is not finite is left out."""
    return [Point(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]


def thin(series: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """Keep at most `limit` points: the first, the last, and the least and greatest of each stretch."""
    if len(series) <= limit:
        return list(series)
    inner = series[1:-1]
    num_stretches = max(1, (limit - 2) // 2)
    kept = [series[0]]
    for number in range(num_stretches):
        begin = number * len(inner) // num_stretches
        end = (number + 1) * len(inner) // num_stretches
        stretch = inner[begin:end]
        extremes = {min(stretch, key=lambda point: point.y), max(stretch, key=lambda point: point.y)}
        kept += sorted(extremes)
    return [*kept, series[-1]]


def smooth(series: Sequence[Point]) -> list[Point]:
    """Return the running mean, exponential over a fortieth of the curve (ten points or more), unbiased."""
    keep = 1 - 2 / (max(10.0, len(series) / 40) + 1)
    mean, weight, result = 0.0, 0.0, []
    for point in series:
        mean = keep * mean + (1 - keep) * point.y
        weight = keep * weight + (1 - keep)
        result.append(Point(point.x, mean / weight))
    return result


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round values from `low` to `high`: 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def number(value: float) -> str:
    """Write a value for an axis or a table: 4 significant digits, 12k, 3.4M."""
    if not math.isfinite(value):
        return "-"
    for size, unit in (
        (1e21, "Z"),
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e4, "k"),
    ):
        if abs(value) >= size:
            scaled = value / (1e3 if unit == "k" else size)
            return f"{scaled:.4g}{unit}"
    if value and abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:.4g}"


class _Scale(NamedTuple):
    """From values to places; logarithmic where curves span decades."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def marks(self) -> list[float]:
        """Return the values that get a line."""
        if not self.is_log:
            return ticks(self.low, self.high)
        exponents = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        return [10.0**exponent for exponent in exponents]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    from_zero: bool = False,
    can_be_log: bool = False,
    write: Callable[[float], str] = number,
) -> str:
    """Return a figure with a legend; curves without points are left out, and a chart without curves is "".

    from_zero: whether the axis begins at 0. can_be_log: whether it may be logarithmic, for spikes.
    """
    drawn = [one for one in series if one.points]
    if not drawn:
        return ""
    everything = [point for one in drawn for point in one.points]
    xs = _Scale(
        min(point.x for point in everything),
        max(point.x for point in everything),
        LEFT,
        WIDTH - RIGHT,
    )
    ys = _vertical([point.y for point in everything], from_zero=from_zero, can_be_log=can_be_log)
    body = [_grid(xs, ys, write)]
    body += [_curve(one, xs, ys) for one in drawn]
    body.append(_hints(drawn, xs, write))
    note = " (logarithmic)" if ys.is_log else ""
    return _figure(title + note, _svg(title, body), _legend(drawn))


def _vertical(values: Sequence[float], *, from_zero: bool, can_be_log: bool) -> _Scale:
    low, high = min(values), max(values)
    middle = sorted(values)[len(values) // 2]
    if can_be_log and low > 0 and high > 30 * middle:
        decades = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
        return _Scale(*decades, HEIGHT - BOTTOM, TOP, is_log=True)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low = min(0.0, low) if from_zero else low - room
    return _Scale(low, high + room, HEIGHT - BOTTOM, TOP)


def _grid(xs: _Scale, ys: _Scale, write: Callable[[float], str]) -> str:
    parts = []
    parts += _rows(ys, write)
    for value in ticks(xs.low, xs.high):
        if value == int(value) and xs(value) < WIDTH - RIGHT - 45:  # room for the word "step"
            place = f'x="{xs(value):.1f}" y="{HEIGHT - 9}" text-anchor="middle"'
            parts.append(f"<text {place}>{number(value)}</text>")
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 9}" text-anchor="end">step</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    return "".join(parts)


def _rows(ys: _Scale, write: Callable[[float], str]) -> list[str]:
    """Return the level lines and their values."""
    parts = []
    for value in ys.marks():
        y = ys(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        place = f'x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end"'
        parts.append(f"<text {place}>{escape(write(value))}</text>")
    return parts


def _curve(series: Series, xs: _Scale, ys: _Scale) -> str:
    places = [(xs(point.x), ys(point.y)) for point in thin(series.points)]
    color = f"c{series.color}"
    if series.style == "dots" or len(places) == 1:
        return "".join(f'<circle class="{color}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="{series.style} {color}" points="{path}"/>'


def _hints(series: Sequence[Series], xs: _Scale, write: Callable[[float], str]) -> str:
    """Return invisible columns that say the values of the steps under them."""
    base = max(series, key=lambda one: len(one.points)).points
    chosen = base[:: max(1, len(base) // MAX_HINTS)]
    by_step = [{point.x: point.y for point in one.points} for one in series]
    width = (WIDTH - LEFT - RIGHT) / max(1, len(chosen))
    parts = []
    for point in chosen:
        values = [
            f"{one.name} {write(known[point.x])}"
            for one, known in zip(series, by_step, strict=True)
            if point.x in known
        ]
        text = f"step {point.x:g}: " + ", ".join(values)
        parts.append(
            f'<rect class="hint" x="{xs(point.x) - width / 2:.1f}" y="{TOP}" width="{width:.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"><title>{escape(text)}</title></rect>'
        )
    return "".join(parts)


@dataclass(frozen=True)
class Bars:
    """One colour of a stacked histogram."""

    name: str
    counts: Sequence[float]
    color: int


def bar_chart(bars: Sequence[Bars], labels: Sequence[str], *, title: str, axis: str) -> str:
    """Return a figure of stacked bars, one for each label; `axis` names what the labels count."""
    totals = [sum(one.counts[index] for one in bars) for index in range(len(labels))]
    if not totals or not max(totals):
        return ""
    ys = _Scale(0, max(totals) * 1.06, HEIGHT - BOTTOM, TOP)
    body = _rows(ys, number)
    width = (WIDTH - LEFT - RIGHT) / len(labels)
    every = max(1, math.ceil(len(labels) / 8))
    for index, label in enumerate(labels):
        x, below = LEFT + index * width, 0.0
        for one in bars:
            top, bottom = ys(below + one.counts[index]), ys(below)
            below += one.counts[index]
            text = escape(f"{label} {axis}: {one.name} {one.counts[index]:g}")
            body.append(
                f'<rect class="c{one.color}" x="{x + 1:.1f}" y="{top:.1f}" width="{max(1.0, width - 2):.1f}" '
                f'height="{bottom - top:.1f}"><title>{text}</title></rect>'
            )
        if index % every == 0:
            body.append(f'<text x="{x:.1f}" y="{HEIGHT - 9}" text-anchor="start">{escape(label)}</text>')
    legend = "".join(_key(one.name, f"c{one.color}") for one in bars) if len(bars) > 1 else ""
    return _figure(title, _svg(title, body), legend)


def _svg(title: str, body: Sequence[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"'
    return f"<svg {size}>{''.join(body)}</svg>"


def _figure(title: str, svg: str, legend: str) -> str:
    caption = f'<figcaption><span>{escape(title)}</span><span class="legend">{legend}</span></figcaption>'
    return f"<figure>{caption}{svg}</figure>"


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    return "".join(_key(one.name, f"c{one.color} {one.style}") for one in series)


def _key(name: str, style: str) -> str:
    return f'<span class="key"><i class="{style}"></i>{escape(name)}</span>'
