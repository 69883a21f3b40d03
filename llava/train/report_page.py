"""How report.html looks: samples, curves, data, cost and recipe of a run on one page, light and dark.

Whatever comes from the run's files is escaped; the page has no script, and its policy forbids any.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from itertools import pairwise
from typing import Any

from llava.train.config import TrainConfig
from llava.train.progress import duration
from llava.train.report import RunRecord
from llava.train.report_charts import Bars, Point, Series, bar_chart, line_chart, number, points, smooth
from llava.train.report_parts import (
    as_float,
    bytes_text,
    date_text,
    maximum,
    pairs,
    plain,
    share_text,
    table,
    text_at,
    tiles,
    value_text,
)
from llava.train.report_style import STYLE

MAX_SOURCES = 8
"""Curves of a chart by source; those with the most tokens are shown."""
MAX_NAMED = 10
_THUMBNAIL = re.compile(r"data:image/(?:jpeg|png);base64,[A-Za-z0-9+/=]+")
_OUTCOMES = {
    "finished": ("good", "finished"),
    "stopped": ("fair", "stopped, with a checkpoint"),
    "failed": ("bad", "failed"),
    "running": ("fair", "no end written: still running, or killed"),
}


def page(run: RunRecord) -> str:
    """Return the whole page."""
    sections = [
        ("Warnings", _warnings(run)),
        ("Asked of the model", _samples(run)),
        ("Curves", _curves(run)),
        ("Validation", _validations(run)),
        ("Data", _data(run)),
        ("Cost", _cost(run)),
        ("What learns", _learns(run)),
        ("Recipe", _recipe(run)),
    ]
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections if content)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run.name)} - training report</title><style>{STYLE}</style></head>"
        f"<body><main>{_header(run)}{body}"
        f"<footer>Written {date_text(time.time())} from run.json, metrics.jsonl and events.jsonl.</footer>"
        "</main></body></html>\n"
    )


def _header(run: RunRecord) -> str:
    kind, text = _OUTCOMES.get(run.outcome, ("fair", run.outcome))
    stage = text_at(run.section("recipe"), "stage", "name")
    model = text_at(run.section("recipe"), "model", "path")
    sessions = run.sessions
    when = f"{date_text(sessions[0].begin)} to {date_text(sessions[-1].end)}" if sessions else ""
    about = " &middot; ".join(escape(part) for part in (stage, model, when) if part)
    return (
        f'<header><h1>{escape(run.name)} <span class="badge {kind}">{escape(text)}</span></h1>'
        f"<p>{about}</p></header>{tiles(_headlines(run))}"
    )


def _headlines(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return (label, value, small print) of the figures at the top."""
    columns = run.columns
    curve = smooth(points(columns["step"], columns["loss"]))
    figures = [("steps", f"{columns.last('step'):.0f}" if columns.num_steps else "0", _epochs(run))]
    if curve:
        figures.append(("training loss", number(curve[-1].y), f"running mean; first {number(curve[0].y)}"))
    validations = run.events_of("validation")
    if validations:
        losses = [as_float(event.get("loss")) for event in validations]
        best = min((loss for loss in losses if math.isfinite(loss)), default=math.nan)
        figures.append(("validation loss", number(losses[-1]), f"best {number(best)}"))
    seconds = columns.total("seconds")
    if seconds:
        figures.append(("time in steps", duration(seconds), f"{run.num_devices} process(es)"))
        speed = columns.total("num_tokens") / seconds
        figures.append(
            ("useful tokens", f"{number(speed)}/s", f"{number(columns.total('num_tokens'))} in all")
        )
    mfu = [value for value in columns["mfu"] if math.isfinite(value)]
    if mfu:
        figures.append(("MFU", f"{sorted(mfu)[len(mfu) // 2]:.1%}", "median step"))
    memory = maximum(columns["peak_memory_bytes"])
    if memory > 0:
        figures.append(("peak memory", bytes_text(memory), "of the first process"))
    return figures


def _epochs(run: RunRecord) -> str:
    epochs = run.columns.last("epoch")
    return f"{epochs:.2f} epochs" if math.isfinite(epochs) else ""


def _warnings(run: RunRecord) -> str:
    lines = [str(event.get("text", "")) for event in run.events_of("warning", "hint")]
    texts = dict.fromkeys(lines)
    if not texts:
        return ""
    items = "".join(
        f"<li>{escape(text)}{_times(lines.count(text))}</li>" for text in list(texts)[: 2 * MAX_NAMED]
    )
    more = len(texts) - 2 * MAX_NAMED
    return f'<ul class="warnings">{items}</ul>' + (
        f"<p>and {more} more in events.jsonl</p>" if more > 0 else ""
    )


def _times(count: int) -> str:
    return f' <small class="dim">({count} times)</small>' if count > 1 else ""


def _samples(run: RunRecord) -> str:
    """Return one card per question: pictures, what was expected, what came after which step."""
    probes = run.events_of("probe")
    if not probes:
        return ""
    cards = []
    for answer in _answers(probes[-1]):
        history = [
            (int(event.get("step", 0)), before)
            for event in probes
            for before in _answers(event)
            if before.get("id") == answer.get("id")
        ]
        cards.append(_card(answer, history))
    note = f"Training questions, answered greedily after step {int(probes[-1].get('step', 0))}."
    return f'<p class="dim">{note}</p><div class="cards">{"".join(cards)}</div>'


def _answers(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    answers = event.get("answers")
    return [one for one in answers if isinstance(one, Mapping)] if isinstance(answers, list) else []


def _card(answer: Mapping[str, Any], history: Sequence[tuple[int, Mapping[str, Any]]]) -> str:
    pictures = "".join(
        f'<img src="{source}" alt="picture of the question">'
        for source in answer.get("thumbnails", ())
        if isinstance(source, str) and _THUMBNAIL.fullmatch(source)
    )
    is_equal = bool(answer.get("is_equal"))
    mark = '<span class="badge good">equal</span>' if is_equal else '<span class="badge fair">differs</span>'
    before = ""
    if len(history) > 1:
        rows = "".join(
            f"<tr><td>{step}</td><td>{escape(str(one.get('got', '')))}</td></tr>"
            for step, one in history[:-1]
        )
        table_of = f"<table><tr><th>step</th><th>answer</th></tr>{rows}</table>"
        before = f"<details><summary>earlier answers</summary>{table_of}</details>"
    return (
        f'<article class="card"><div class="pictures">{pictures}</div><div>'
        f'<p class="question">{escape(str(answer.get("question", "")))}</p><dl>'
        f"<dt>expected</dt><dd>{escape(str(answer.get('expected', '')))}</dd>"
        f"<dt>got {mark}</dt><dd>{escape(str(answer.get('got', ''))) or '<i>nothing</i>'}</dd></dl>"
        f'{before}<p class="dim">{escape(str(answer.get("source", "")))} &middot; '
        f"{escape(str(answer.get('where') or answer.get('id', '')))}</p></div></article>"
    )


def _curves(run: RunRecord) -> str:
    columns = run.columns
    steps = columns["step"]

    def curve(name: str) -> list[Point]:
        return points(steps, columns[name])

    loss, norm, speed = curve("loss"), curve("grad_norm"), curve("tokens_per_second")
    checked = [Point(as_float(e.get("step")), as_float(e.get("loss"))) for e in run.events_of("validation")]
    checked = [point for point in checked if math.isfinite(point.y)]
    rates = _rates(run) or [Series("learning rate", curve("learning_rate"))]
    shares = [("data wait", 3), ("communication", 2), ("compute", 0), ("padding", 4)]
    charts = [
        line_chart(
            [
                Series("each step", loss, style="faint"),
                Series("running mean", smooth(loss)),
                Series("validation", checked, 1, "dots" if len(checked) < 40 else "line"),
            ],
            title="Loss",
            can_be_log=True,
        ),
        _by_source(run),
        line_chart(rates, title="Learning rate", from_zero=True),
        line_chart(
            [Series("each step", norm, style="faint"), Series("running mean", smooth(norm))],
            title="Gradient norm before clipping",
            can_be_log=True,
        ),
        line_chart(
            [Series("each step", speed, style="faint"), Series("running mean", smooth(speed))],
            title="Useful tokens per second",
            from_zero=True,
        ),
        line_chart(
            [
                Series(name, smooth(curve(f"{name.replace(' ', '_')}_share")), color)
                for name, color in shares
                if run.columns.total(f"{name.replace(' ', '_')}_share")
            ],
            title="Shares of step time, and of positions that are padding",
            from_zero=True,
            write=lambda value: f"{value:.0%}",
        ),
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _rates(run: RunRecord) -> list[Series]:
    """Return a curve for each part that has a rate of its own."""
    steps = run.columns["step"]
    parts = {name: points(steps, column) for name, column in run.columns.under("learning_rates").items()}
    distinct: dict[tuple[Point, ...], list[str]] = {}
    for name, curve in parts.items():
        distinct.setdefault(tuple(curve), []).append(name)
    return [Series(", ".join(names), curve, index) for index, (curve, names) in enumerate(distinct.items())]


def _by_source(run: RunRecord) -> str:
    losses = run.columns.under("loss_by_source")
    if len(losses) < 2:
        return ""
    weight = {name: run.columns.total(f"targets_by_source/{name}") for name in losses}
    shown = sorted(losses, key=lambda name: -weight[name])[:MAX_SOURCES]
    steps = run.columns["step"]
    title = "Loss by source" + (
        f", the largest {MAX_SOURCES} of {len(losses)}" if len(losses) > MAX_SOURCES else ""
    )
    return line_chart(
        [Series(name, smooth(points(steps, losses[name])), index) for index, name in enumerate(shown)],
        title=title,
        can_be_log=True,
    )


def _validations(run: RunRecord) -> str:
    """Return the last validations as a table, with the loss of each source where there are several."""
    rows = []
    for event in run.events_of("validation")[-MAX_NAMED:]:
        losses = event.get("loss_by_source")
        by_source = losses if isinstance(losses, Mapping) and len(losses) > 1 else {}
        rows.append(
            {"after step": int(event.get("step", 0)), "loss": as_float(event.get("loss")), **by_source}
        )
    names = dict.fromkeys(str(name) for row in rows for name in row)
    return table(rows, list(names)[: MAX_SOURCES + 2])


def _data(run: RunRecord) -> str:
    data = run.section("data")
    if not data:
        return ""
    labels = {
        "num_samples": "samples",
        "num_usable": "usable",
        "num_pictures": "pictures",
        "num_tokens": "tokens",
        "num_targets": "tokens trained",
        "num_truncated": "truncated",
        "num_masked": "nothing to train",
        "num_bad": "bad",
    }
    counts = [(text, number(as_float(data[name])), "") for name, text in labels.items() if name in data]
    parts = [tiles(counts)] if counts else [f"<p>{escape(str(data.get('summary', '')))}</p>"]
    sources = [one for one in data.get("sources", ()) if isinstance(one, Mapping)]
    tables = table(sources, ("name", "samples", "tokens", "tokens trained", "pictures", "bad"))
    lengths = data.get("lengths")
    chart = _lengths(lengths) if isinstance(lengths, Mapping) else ""
    parts.append(f'<div class="charts">{chart}<div>{tables}</div></div>')
    bad = [one for one in data.get("bad", ()) if isinstance(one, Mapping)]
    if bad:
        parts.append(f"<h3>Bad samples</h3>{table(bad[:MAX_NAMED], ('where', 'why'))}")
    if data.get("fingerprint"):
        parts.append(f'<p class="dim">fingerprint {escape(str(data["fingerprint"]))}</p>')
    return "".join(parts)


def _lengths(lengths: Mapping[str, Any]) -> str:
    edges = [int(edge) for edge in lengths.get("edges", ())]
    bars = [
        Bars(name, [float(count) for count in lengths[key]], color)
        for key, name, color in (("picture", "with pictures", 0), ("text", "text only", 1))
        if isinstance(lengths.get(key), list) and len(lengths[key]) == len(edges) - 1
    ]
    labels = [f"{begin}-{end - 1}" if len(edges) <= 9 else str(begin) for begin, end in pairwise(edges)]
    return (
        bar_chart(bars, labels, title="Tokens of a sample, pictures included", axis="tokens") if bars else ""
    )


def _cost(run: RunRecord) -> str:
    columns, machine = run.columns, run.section("machine")
    seconds, tokens = columns.total("seconds"), columns.total("num_tokens")
    sessions = run.sessions
    wall = sum(session.end - session.begin for session in sessions)
    device = str(machine.get("device", "device"))
    unit = "CPU" if device.startswith("CPU") else "GPU"
    rows = [
        ("machine", f"{run.num_devices} x {device}" if machine else ""),
        ("wall time, all sessions", duration(wall) if wall else ""),
        ("of it in the steps that count", duration(seconds) if seconds else ""),
        (
            f"{unit} hours" if unit == "GPU" else "process hours",
            f"{(wall or seconds) * run.num_devices / 3600:.3g}",
        ),
        ("samples", number(columns.total("num_samples"))),
        ("samples left out as bad", number(columns.total("num_skipped"))),
        ("tokens, useful", number(tokens)),
        ("tokens, trained", number(columns.total("num_targets"))),
        ("positions that were padding", share_text(columns.total("num_padded"), tokens)),
        ("useful FLOPs", number(_flops(run)) if "flops_per_second" in columns else ""),
        ("peak memory of the first process", bytes_text(maximum(columns["peak_memory_bytes"]))),
    ]
    left = pairs((name, value) for name, value in rows if value and value != "-")
    history = [
        {
            "begun": date_text(session.begin),
            "from step": session.first_step,
            "to step": session.last_step,
            "took": duration(session.end - session.begin),
            "ended": session.outcome,
        }
        for session in sessions
    ]
    right = table(history, ("begun", "from step", "to step", "took", "ended"))
    return f'<div class="charts"><div>{left}</div><div>{right}</div></div>'


def _flops(run: RunRecord) -> float:
    rates, seconds = run.columns["flops_per_second"], run.columns["seconds"]
    both = zip(rates, seconds, strict=True)
    return math.fsum(rate * time_s for rate, time_s in both if math.isfinite(rate * time_s))


def _learns(run: RunRecord) -> str:
    parts = [one for one in run.section("learns").get("parts", ()) if isinstance(one, Mapping)]
    return table(parts, ("part", "learns", "trained", "parameters", "learning rate"))


def _recipe(run: RunRecord) -> str:
    recipe = run.section("recipe")
    if not recipe:
        return ""
    defaults: dict[str, Any] = asdict(TrainConfig())
    parts = []
    for name, section in recipe.items():
        if not isinstance(section, Mapping):
            continue
        known = defaults.get(name, {})
        changed = {key for key, value in section.items() if key not in known or plain(known[key]) != value}
        own = [(str(key), value_text(value)) for key, value in section.items() if key in changed]
        rest = [(str(key), value_text(value)) for key, value in section.items() if key not in changed]
        defaults_of = (
            f"<details><summary>{len(rest)} defaults</summary>{pairs(rest)}</details>" if rest else ""
        )
        parts.append(f"<div><h3>{escape(str(name))}</h3>{pairs(own) if own else ''}{defaults_of}</div>")
    return f'<div class="recipe">{"".join(parts)}</div>'
