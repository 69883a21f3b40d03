"""How a report looks: tables, bars and cards as HTML. Every text is escaped here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #3b76b0; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h2 { border-bottom: 1px solid var(--line); padding-bottom: .2rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
th { white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
.card { background: var(--soft); border-radius: .4rem; padding: .7rem; overflow-wrap: anywhere; }
.card img { display: block; max-width: 100%; margin-bottom: .4rem; }
.card dl { margin: .3rem 0 0; } .card dt { opacity: .7; font-size: .85em; } .card dd { margin: 0 0 .3rem; }
.card dd, td { white-space: pre-wrap; }
svg { max-width: 100%; height: auto; } svg text { fill: currentColor; font: 13px system-ui, sans-serif; }
"""
_ROW, _LEFT, _WIDTH, _RIGHT = 24, 170, 420, 200


class Bar(NamedTuple):
    """A share in percent with its interval."""

    name: str
    value: float
    low: float
    high: float
    num_items: int


def page(title: str, parts: Sequence[str]) -> str:
    """Return a whole page; `parts` are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{''.join(parts)}</body></html>\n"
    )


def section(title: str, content: str, *, level: int = 2) -> str:
    """Return a heading and what is below it; `content` is HTML."""
    return f"<h{level}>{escape(title)}</h{level}>\n{content}\n"


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Return a table; `numbers` are the columns set to the right."""
    titles = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = []
    for row in rows:
        cells = [
            f"<td{' class=number' if column in numbers else ''}>{escape(cell)}</td>"
            for column, cell in enumerate(row)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><tr>{titles}</tr>{"".join(lines)}</table></div>\n'


def bars(drawn: Sequence[Bar]) -> str:
    """Return a plot of shares with their intervals, 0 to 100 percent."""
    parts = []
    for number, bar in enumerate(drawn):
        top, scale = number * _ROW, _WIDTH / 100
        middle, low, high = top + _ROW / 2, _LEFT + scale * bar.low, _LEFT + scale * bar.high
        label = f"{bar.value:.1f} ({bar.low:.1f} to {bar.high:.1f}), n = {bar.num_items}"
        parts.append(
            f'<text x="{_LEFT - 8}" y="{middle + 4}" text-anchor="end">{escape(_short(bar.name))}</text>'
            f'<rect x="{_LEFT}" y="{top + 5}" width="{scale * bar.value:.1f}" height="{_ROW - 10}" '
            'fill="var(--bar)" opacity="0.6"/>'
            f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8" '
            'stroke="currentColor" fill="none"/>'
            f'<text x="{_LEFT + _WIDTH + 8}" y="{middle + 4}">{escape(label)}</text>'
        )
    width, height = _LEFT + _WIDTH + _RIGHT, len(drawn) * _ROW
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">{"".join(parts)}</svg>\n'


def card(*, picture: str | None, title: str, lines: Mapping[str, str]) -> str:
    """Return a question with its picture (a data URI) and what was said about it."""
    image = f'<img src="{escape(picture)}" alt="">' if picture is not None else ""
    entries = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in lines.items() if text
    )
    return f'<div class="card">{image}<b>{escape(title)}</b><dl>{entries}</dl></div>\n'


def _short(name: str, length: int = 22) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}..."
