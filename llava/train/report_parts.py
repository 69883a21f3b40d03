"""Pieces of report.html: tiles, tables and how figures are written. Everything is escaped here."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from llava.train.report_charts import number


def plain(value: Any) -> Any:
    """Return a default as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def value_text(value: Any) -> str:
    """Write an option."""
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def tiles(figures: Iterable[tuple[str, str, str]]) -> str:
    """Return a row of figures: (label, value, small print)."""
    cells = "".join(
        f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b>'
        f"<small>{escape(small)}</small></div>"
        for label, value, small in figures
    )
    return f'<div class="tiles">{cells}</div>'


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values."""
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="pairs">{body}</table>'


def table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return a table of the named columns that some row has; "" without rows."""
    shown = [name for name in names if any(name in row for row in rows)]
    if not rows or not shown:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in shown)
    body = "".join("<tr>" + "".join(_cell(row.get(name, "")) for name in shown) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = f"{value:,}" if isinstance(value, int) else number(value)
        return f'<td class="figure">{text}</td>'
    return f"<td>{escape(value_text(value))}</td>"


def text_at(section: Mapping[str, Any], name: str, key: str) -> str:
    """Return a text of a nested section, or ""."""
    inner = section.get(name)
    return str(inner.get(key) or "") if isinstance(inner, Mapping) else ""


def as_float(value: Any) -> float:
    """Return a number, NaN for anything else."""
    return float(value) if isinstance(value, int | float) else math.nan


def maximum(values: Iterable[float]) -> float:
    """Return the greatest value that is a number, or NaN."""
    return max((value for value in values if math.isfinite(value)), default=math.nan)


def share_text(part: float, rest: float) -> str:
    """Write part / (part + rest) in percent."""
    return f"{part / (part + rest):.1%}" if part + rest else ""


def bytes_text(size: float) -> str:
    """Write a size in MiB or GiB; "" when it is not known."""
    if not math.isfinite(size) or size <= 0:
        return ""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def date_text(seconds: float) -> str:
    """Write seconds since the epoch as local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
