"""The diagnosis as one HTML page that needs nothing else: numbers, findings, lengths, what is trained.

Used by `command`. Everything that comes from the data is escaped; the page runs no script and loads nothing.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterator
from typing import Final

import numpy as np

import llava
from llava.data.doctor.diagnosis import Diagnosis, Preview
from llava.data.doctor.findings import GROUPS, KINDS, Finding
from llava.data.doctor.histogram import Panel, histogram
from llava.data.doctor.report_style import STYLE
from llava.data.doctor.tokens import Piece
from llava.errors import ImageError
from llava.processing.images import load_image

_NUM_EXAMPLES: Final = 8
_NUM_THUMBNAILS: Final = 120
_THUMBNAIL_SIDE: Final = 128
_MAX_PIECE: Final = 6000
_NAMES: Final = {"error": "error", "warning": "warning", "info": "note"}


def report(diagnosis: Diagnosis) -> str:
    """Return the page."""
    thumbnails = _Thumbnails()
    title = html.escape(os.path.basename(diagnosis.data.rstrip("/")) or diagnosis.data)
    body = [
        *_header(diagnosis, title),
        *_findings(diagnosis, thumbnails),
        *_lengths(diagnosis),
        *_previews(diagnosis, thumbnails),
        *_files(diagnosis),
        *_footer(diagnosis),
    ]
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>Data report: {title}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    # Half a character from the data cannot be written.
    return page.encode("utf-8", "replace").decode("utf-8")


class _Thumbnails:
    """Makes small pictures, up to a number, each once."""

    def __init__(self) -> None:
        self._made: dict[str, str] = {}

    def tag(self, path: str) -> str:
        """Return an img element; nothing where there is no picture that can be shown."""
        if not path:
            return ""
        if path not in self._made:
            if len(self._made) >= _NUM_THUMBNAILS:
                return ""
            self._made[path] = self._make(path)
        return self._made[path]

    def _make(self, path: str) -> str:
        try:
            image = load_image(path, on_notice=lambda _: None)
        except ImageError:
            return ""
        image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        name = html.escape(path[:200], quote=True)
        return f'<img class="thumb" alt="" title="{name}" src="data:image/jpeg;base64,{data}">'


def _header(diagnosis: Diagnosis, title: str) -> Iterator[str]:
    errors, warnings = diagnosis.findings.num("error"), diagnosis.findings.num("warning")
    if errors:
        verdict, style = f"{errors:,} {_plural('error', errors)}", "error"
    elif warnings:
        verdict, style = f"No errors, {warnings:,} {_plural('warning', warnings)}", "warning"
    else:
        verdict, style = "Clean", "good"
    yield '<header><div><p class="eyebrow">Training data report</p>'
    yield f'<h1>{title}</h1><p class="soft">{html.escape(diagnosis.data)}</p></div>'
    yield f'<div class="verdict {style}">{verdict}</div></header><div class="tiles">'
    yield _tile(f"{diagnosis.num_samples:,}", "samples")
    yield _tile(f"{diagnosis.num_readable:,}", f"readable of {diagnosis.num_pictures:,} pictures")
    if len(diagnosis.lengths):
        yield _tile(_short(int(diagnosis.lengths.total.sum())), "tokens, pictures included")
        yield _tile(_short(int(diagnosis.lengths.targets.sum())), "of them trained")
    if diagnosis.num_with_errors:
        share = 1 - diagnosis.num_with_errors / max(diagnosis.num_samples, 1)
        yield _tile(f"{share:.1%}" if share else "0 %", "of the samples without errors")
    yield _tile(f"{errors:,}", _plural("error", errors), "error" if errors else "")
    yield _tile(f"{warnings:,}", _plural("warning", warnings), "warning" if warnings else "")
    yield "</div>"
    if diagnosis.is_partial:
        yield f'<p class="soft">Only the first {diagnosis.num_samples:,} samples were looked at.</p>'


def _tile(number: str, label: str, style: str = "") -> str:
    return f'<div class="tile"><b class="{style}">{number}</b><span>{label}</span></div>'


def _plural(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"


def _short(value: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if value >= size:
            scale = 10**3 if unit == "k" else size
            return f"{value / scale:.1f}{unit}"
    return f"{value:,}"


def _findings(diagnosis: Diagnosis, thumbnails: _Thumbnails) -> Iterator[str]:
    findings = diagnosis.findings
    yield "<h2>Findings</h2>"
    if not findings.counts:
        yield '<div class="card">Nothing was found.</div>'
        return
    most = max(findings.counts.values())
    codes = findings.codes()
    for group in GROUPS:
        mine = [code for code in codes if KINDS[code].group == group]
        if not mine:
            continue
        total = sum(findings.counts[code] for code in mine)
        yield f'<h3>{group} <span class="soft">{total:,}</span></h3><div class="kinds">'
        for code in mine:
            yield from _kind(diagnosis, code, most, thumbnails)
        yield "</div>"


def _kind(diagnosis: Diagnosis, code: str, most: int, thumbnails: _Thumbnails) -> Iterator[str]:
    kind, count = KINDS[code], diagnosis.findings.counts[code]
    share = max((count / most) ** 0.5 * 100, 3)
    yield (
        f'<details><summary><span class="badge {kind.severity}">{_NAMES[kind.severity]}</span>'
        f'<span class="name">{html.escape(kind.title)} <small>{code}</small></span>'
        f'<span class="bar"><i class="{kind.severity}" style="width:{share:.0f}%"></i></span>'
        f'<span class="count">{count:,}</span></summary><div class="examples">'
        f'<p class="remedy"><b>What to do:</b> {html.escape(kind.remedy)}</p>'
    )
    for finding in diagnosis.findings.of(code)[:_NUM_EXAMPLES]:
        yield _example(finding, thumbnails)
    if count > _NUM_EXAMPLES:
        yield f'<p class="soft">and {count - _NUM_EXAMPLES:,} more; --json lists them.</p>'
    yield "</div></details>"


def _example(finding: Finding, thumbnails: _Thumbnails) -> str:
    pictures = thumbnails.tag(finding.picture) + thumbnails.tag(finding.other_picture)
    name = f" &#183; id {html.escape(finding.id[:80])}" if finding.id else ""
    return (
        f'<div class="example">{pictures}<div><span class="place">{html.escape(finding.where)}{name}</span>'
        f"<br>{html.escape(finding.detail)}</div></div>"
    )


def _lengths(diagnosis: Diagnosis) -> Iterator[str]:
    lengths = diagnosis.lengths
    if not len(lengths):
        return
    panels = [
        Panel("Text", lengths.text, "--text-bar"),
        Panel("Pictures (samples that have some)", lengths.pictures[lengths.pictures > 0], "--picture-bar"),
        Panel("Total", lengths.total, "--total-bar"),
    ]
    yield "<h2>Lengths</h2>"
    yield f'<div class="card scroll">{histogram(panels, limit=diagnosis.max_length)}</div>'
    yield '<div class="card scroll"><table><tr><th>Tokens</th>'
    shares = (0, 50, 90, 99, 100)
    yield "".join(f'<th class="num">{name}</th>' for name in ("least", "median", "90 %", "99 %", "most"))
    yield '<th class="num">sum</th></tr>'
    rows = [(panel.title, panel.values) for panel in panels] + [("Trained", lengths.targets)]
    for name, values in rows:
        cells = [int(value) for value in np.percentile(values, shares)] if values.size else [0] * len(shares)
        numbers = "".join(f'<td class="num">{cell:,}</td>' for cell in [*cells, int(values.sum())])
        yield f"<tr><td>{name}</td>{numbers}</tr>"
    yield "</table></div><h2>What a limit would cut</h2>"
    yield '<div class="card scroll"><table><tr><th class="num">Limit</th><th class="num">Samples cut</th>'
    yield '<th class="num">Samples lost</th><th class="num">Trained tokens lost</th></tr>'
    for forecast in diagnosis.forecasts:
        chosen = ' class="chosen"' if forecast.limit == diagnosis.max_length else ""
        share = forecast.num_targets_lost / max(forecast.num_targets, 1) * 100
        yield (
            f'<tr{chosen}><td class="num">{forecast.limit:,}</td><td class="num">{forecast.num_cut:,}</td>'
            f'<td class="num">{forecast.num_lost:,}</td>'
            f'<td class="num">{forecast.num_targets_lost:,} ({share:.2g} %)</td></tr>'
        )
    yield "</table></div>"


def _previews(diagnosis: Diagnosis, thumbnails: _Thumbnails) -> Iterator[str]:
    if not diagnosis.previews:
        return
    yield "<h2>What is trained</h2>"
    yield (
        '<p class="legend"><span><mark>trained</mark></span><span>read, not trained</span>'
        '<span><span class="chip">picture</span></span></p>'
    )
    for preview in diagnosis.previews:
        yield from _preview(preview, thumbnails)


def _preview(preview: Preview, thumbnails: _Thumbnails) -> Iterator[str]:
    pictures = "".join(thumbnails.tag(path) for path in preview.pictures[:4])
    name = f"{html.escape(preview.where)} &#183; id {html.escape(preview.id[:80])}"
    pieces = "".join(_piece(piece) for piece in preview.pieces)
    yield f'<div class="card"><p class="place">{name}</p>'
    yield f'<div class="sample">{pictures}<pre class="prompt">{pieces}</pre></div></div>'


def _piece(piece: Piece) -> str:
    if piece.num_image_tokens:
        return f'<span class="chip">picture, {piece.num_image_tokens} tokens</span>'
    text = piece.text
    if len(text) > _MAX_PIECE:
        text = f"{text[:_MAX_PIECE]} ... ({len(text) - _MAX_PIECE:,} more characters)"
    return f"<mark>{html.escape(text)}</mark>" if piece.is_trained else html.escape(text)


def _files(diagnosis: Diagnosis) -> Iterator[str]:
    names = ("Samples", "With pictures", "Turns", "Mean tokens", "Trained", "Repeat", "Errors", "Warnings")
    yield '<h2>By file</h2><div class="card scroll"><table><tr><th>File</th>'
    yield "".join(f'<th class="num">{name}</th>' for name in names) + "</tr>"
    by_source = diagnosis.findings.by_source
    for row in diagnosis.rows:
        mean = f"{row.num_tokens / row.num_encoded:,.0f}" if row.num_encoded else "-"
        trained = f"{row.num_targets / row.num_tokens * 100:.0f} %" if row.num_tokens else "-"
        pictures = f"{row.num_with_pictures / row.num_samples * 100:.0f} %" if row.num_samples else "-"
        cells = (
            f"{row.num_samples:,}",
            pictures,
            f"{row.num_turns:,}",
            mean,
            trained,
            f"{row.repeat:g}",
            f"{by_source[row.name, 'error']:,}",
            f"{by_source[row.name, 'warning']:,}",
        )
        numbers = "".join(f'<td class="num">{cell}</td>' for cell in cells)
        path, name = html.escape(row.path, quote=True), html.escape(row.name)
        yield f'<tr><td title="{path}">{name}</td>{numbers}</tr>'
    yield "</table></div>"


def _footer(diagnosis: Diagnosis) -> Iterator[str]:
    facts = [f"llava doctor {llava.__version__}", f"{diagnosis.seconds:.1f} s"]
    if diagnosis.tokenizer:
        facts.append(
            f"tokens of {html.escape(diagnosis.tokenizer)}, template {html.escape(diagnosis.template)}, "
            f"{diagnosis.num_image_tokens} a picture, limit {diagnosis.max_length:,}"
        )
    if diagnosis.num_benchmark:
        facts.append(f"compared with {diagnosis.num_benchmark:,} benchmark pictures")
    yield f"<footer>{' &#183; '.join(facts)}</footer>"
