"""Lengths of samples -> a drawing of how many have which, as SVG text.

Used by `report`. Colours are CSS variables of the page, so that it follows light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

_WIDTH: Final = 880
_LEFT: Final = 64
_RIGHT: Final = 20
_PANEL: Final = 112
_GAP: Final = 36
_NUM_BINS: Final = 56

Values = npt.NDArray[np.int32]


class Panel(NamedTuple):
    """One row of the drawing."""

    title: str
    values: Values
    colour: str
    """CSS variable."""


def histogram(panels: Sequence[Panel], *, limit: int) -> str:
    """Draw panels over one axis of tokens, with a line at `limit`; what lies beyond it is in its last bar.

    values: int32[n], n above 0 in one panel at least.
    """
    longest = max((int(panel.values.max()) for panel in panels if panel.values.size), default=1)
    high = max((_usual(panel.values) for panel in panels if panel.values.size), default=1.0)
    step = _nice(max(min(longest, high * 1.15), 8) / _NUM_BINS)
    num_bins = max(math.ceil(min(longest + 1, high * 1.15 + step) / step), 4)
    # The limit belongs into the drawing when it is near enough to matter.
    if num_bins * step < limit <= 1.6 * num_bins * step:
        num_bins = math.ceil(limit * 1.04 / step)
    height = len(panels) * (_PANEL + _GAP) + 30
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Histogram of sample lengths">',
    ]
    for number, panel in enumerate(panels):
        top = number * (_PANEL + _GAP) + 22
        parts += _panel(panel, top, step=step, num_bins=num_bins, limit=limit)
    parts += _axis(height - 30, step=step, num_bins=num_bins, is_open=longest >= step * num_bins)
    return "".join([*parts, "</svg>"])


def _usual(values: Values) -> float:
    """Return where the drawing may end: a few giants must not press all others into one bar."""
    almost_all, most = np.quantile(values, (0.995, 0.9))
    return float(min(almost_all, 3 * most))


def _nice(value: float) -> int:
    """Return the next of 1, 2, 4, 5, 8, 10, 20, ... that is not below `value`."""
    scale = 10 ** max(math.floor(math.log10(max(value, 1))), 0)
    return int(next(factor * scale for factor in (1, 2, 4, 5, 8, 10) if factor * scale >= value))


def _x(tokens: float, step: int, num_bins: int) -> float:
    return _LEFT + tokens / (step * num_bins) * (_WIDTH - _LEFT - _RIGHT)


def _panel(panel: Panel, top: int, *, step: int, num_bins: int, limit: int) -> list[str]:
    bins = np.minimum(panel.values // step, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    peak = max(int(counts.max()), 1)
    bottom = top + _PANEL
    parts = [f'<text x="{_LEFT}" y="{top - 8}" class="chart-title">{panel.title}</text>']
    if panel.values.size:
        summary = f"median {int(np.median(panel.values)):,} &#183; longest {int(panel.values.max()):,}"
        parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{top - 8}" class="chart-note end">{summary}</text>')
    for share in (0.5, 1.0):
        y = bottom - share * (_PANEL - 6)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        shown = _short(peak * share)
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" class="tick end">{shown}</text>')
    for index, count in enumerate(counts.tolist()):
        if not count:
            continue
        # A bar of one sample among thousands stays visible.
        tall = max(count / peak * (_PANEL - 6), 1.5)
        x, wide = _x(index * step, step, num_bins), (_WIDTH - _LEFT - _RIGHT) / num_bins
        ending = "more" if index == num_bins - 1 else f"{(index + 1) * step - 1:,}"
        parts.append(
            f'<rect x="{x + 0.5:.1f}" y="{bottom - tall:.1f}" width="{max(wide - 1, 1):.1f}" '
            f'height="{tall:.1f}" rx="1.5" fill="var({panel.colour})">'
            f"<title>{index * step:,} to {ending} tokens: {count:,} samples</title></rect>"
        )
    parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" class="axis"/>')
    if limit < step * num_bins:
        x = _x(limit, step, num_bins)
        anchor = "end" if x > _WIDTH - 160 else ""
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 2}" y2="{bottom}" class="limit"/>')
        parts.append(
            f'<text x="{x + (-6 if anchor else 6):.1f}" y="{top + 10}" class="limit-text {anchor}">'
            f"limit {limit:,}</text>"
        )
    return parts


def _axis(top: int, *, step: int, num_bins: int, is_open: bool) -> list[str]:
    end = step * num_bins
    between = _nice(end / 8)
    note = "; the last bar holds all that are longer" if is_open else ""
    parts = []
    for tokens in range(0, end + 1, between):
        x = _x(tokens, step, num_bins)
        parts.append(f'<text x="{x:.1f}" y="{top + 2}" class="tick middle">{tokens:,}</text>')
    parts.append(
        f'<text x="{_WIDTH - _RIGHT}" y="{top + 22}" class="chart-note end">tokens a sample{note}</text>'
    )
    return parts


def _short(value: float) -> str:
    """Return 950, 1.2k, 34k, 1.5M."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
