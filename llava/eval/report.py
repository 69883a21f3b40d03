"""`llava eval report RUN...`: one HTML file with scores, intervals, categories, comparisons and answers.

Nothing in it is fetched or run: plots are SVG, pictures are inlined small, there is no script. `report_page`
is how it looks.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from llava.errors import DataError, FileError
from llava.eval.answering import source_of
from llava.eval.benchmark import Item, get_benchmark
from llava.eval.comparing import compare_runs
from llava.eval.evaluating import published_row
from llava.eval.questions import Question
from llava.eval.report_page import Bar, bars, card, page, paragraph, section, table
from llava.eval.runs import Run, read_runs
from llava.eval.statistics import mean_interval
from llava.files import write_text
from llava.processing.images import load_image

T = TypeVar("T")

MAX_WRONG, MAX_RIGHT = 12, 6
THUMBNAIL_PIXELS = 160
MAX_CATEGORIES = 40
OVERVIEW = (
    "benchmark", "model", "figure", "score", "95 % interval", "smallest difference", "questions", "published"
)  # fmt: skip
ORDER = (
    "model", "judge", "questions in both orders", "same answer preferred", "score over both orders",
    "means of both", "standing first is worth", "preferred by place",
)  # fmt: skip
DRIFT = ("model", "judge", "compared with", "of", "replies", "today less then", "drift")


def write_report(paths: Sequence[Path], output: Path) -> Path:
    """Write the report of the runs in some folders, and return where; raises FileError without runs."""
    runs = read_runs(paths)
    names = list(dict.fromkeys(run.benchmark for run in runs))
    parts = [_overview(runs)]
    for name in names:
        parts.append(_benchmark(name, [run for run in runs if run.benchmark == name]))
    write_text(output, page(f"Evaluation: {', '.join(dict.fromkeys(run.model for run in runs))}", parts))
    return output


def _overview(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        published = published_row(get_benchmark(run.benchmark), run.model)
        beside = "" if published is None else f"{published.value:g} ({published.model}, {published.source})"
        rows.append(
            [
                run.record["title"],
                run.model,
                run.record["headline"],
                f"{run.value:.2f}",
                _spread(run.interval),
                "" if run.interval is None else f"{run.interval['smallest_difference']:.2f}",
                str(run.record["num_items"]),
                beside,
            ]
        )
    return section("Scores", table(OVERVIEW, rows, numbers=(3, 5, 6))) + paragraph(
        "The smallest difference is what this many questions show 4 times in 5 against an unrelated model of "
        "the same spread; two models on the same questions show smaller ones."
    )


def _benchmark(name: str, runs: Sequence[Run]) -> str:
    parts = [_figures(runs)]
    parts += [_categories(run) for run in runs]
    parts.append(_trust(runs))
    if len(runs) > 1:
        parts.append(_comparisons(runs))
    parts += [_gallery(name, run) for run in runs]
    parts += [_settings(run) for run in runs]
    return section(str(runs[0].record["title"]), "".join(parts))


def _figures(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.record["figures"]))
    rows = []
    for name in names:
        row = [name]
        for run in runs:
            value = run.record["figures"].get(name)
            spread = _spread(run.record["intervals"].get(name))
            row.append("" if value is None else f"{value:.3f}" + (f"  ({spread})" if spread else ""))
        rows.append(row)
    notices = [f"{run.model}: {notice}" for run in runs for notice in run.record["notices"]]
    return table(["figure", *(run.model for run in runs)], rows) + "".join(map(paragraph, notices))


def _categories(run: Run) -> str:
    groups: dict[str, list[Item]] = {}
    for item in run.items():
        groups.setdefault(item.category, []).append(item)
    if len(groups) < 2:
        return ""
    drawn = []
    for name, items in sorted(groups.items())[:MAX_CATEGORIES]:
        found = mean_interval(items)
        drawn.append(Bar(name, found.value, found.low, found.high, len(items)))
    return section(f"By category: {run.model}", bars(drawn), level=3)


def _trust(runs: Sequence[Run]) -> str:
    """Show how far to believe the judge, as far as that was looked for."""
    orders = [[run.model, str(run.trust["judge"]), *_order(run.trust["order"])]
              for run in runs if "order" in run.trust]  # fmt: skip
    drifts = [[run.model, str(run.trust["judge"]), *_drift(run.trust["drift"])]
              for run in runs if "drift" in run.trust]  # fmt: skip
    parts = []
    if orders:
        parts.append(table(ORDER, orders, numbers=(2, 3, 4, 5)))
    if drifts:
        parts.append(table(DRIFT, drifts, numbers=(4,)))
    return section("How far to believe the judge", "".join(parts), level=3) if parts else ""


def _order(found: Mapping[str, Any]) -> list[str]:
    if "agreement" not in found:
        return [str(found["num_questions"]), "", "", "", "", ""]
    bias, relative = found["position_bias"], found["relative"]
    return [
        str(found["num_questions"]),
        f"{100 * found['agreement']:.1f} %",
        "" if relative is None else f"{relative:.1f}",
        " and ".join(f"{score:.2f}" for score in found["mean"]),
        f"{bias['mean']:+.2f} ({_spread(bias)})",
        ", ".join(_spaced(found["disagreeing"], MAX_WRONG)),
    ]


def _drift(found: Mapping[str, Any]) -> list[str]:
    moved = [f"{own['mean']:+.2f} ({_spread(own)})" for own in found.get("differences", ())]
    verdict = {True: "scores are not comparable", False: "none can be seen", None: "too few replies"}
    return [
        ", ".join(found["anchor_model"]),
        found["anchor_asked_at"][0][:10],
        str(found["num_items"]),
        ", ".join(moved),
        verdict[found.get("has_moved")],
    ]


def _comparisons(runs: Sequence[Run]) -> str:
    rows = []
    for other in runs[1:]:
        found = compare_runs(runs[0], other)
        rows.append(
            [
                f"{other.model} less {runs[0].model}",
                f"{found['difference']:+.2f}",
                f"{found['low']:+.2f} to {found['high']:+.2f}",
                f"{found['p_value']:.3g}",
                found["method"],
                "; ".join(found["differs"]) or "nothing",
            ]
        )
    head = ["runs", "difference", "95 % interval", "p", "method", "what differs"]
    return section("Compared on the same questions", table(head, rows, numbers=(1, 3)), level=3)


def _gallery(name: str, run: Run) -> str:
    questions = _questions(name, run)
    items = run.items()
    wrong = _spaced([item for item in items if item.score < 0.5], MAX_WRONG)
    right = _spaced([item for item in items if item.score >= 0.5], MAX_RIGHT)
    parts = []
    for title, some in (("Wrong", wrong), ("Right", right)):
        cards = [_card(item, questions.get(str(item.id)), run.files().images) for item in some]
        if cards:
            parts.append(
                section(f"{title}: {run.model}", f'<div class="cards">{"".join(cards)}</div>', level=3)
            )
    return "".join(parts)


def _questions(name: str, run: Run) -> Mapping[str, Question]:
    """Return the questions by id, none where their file is gone."""
    try:
        return {str(question.id): question for question in get_benchmark(name).questions(run.files())}
    except (FileError, DataError):
        return {}


def _card(item: Item, question: Question | None, images: Path) -> str:
    picture = None if question is None or question.image is None else thumbnail(question.image, images)
    return card(
        picture=picture,
        title=f"{item.id} ({item.category})",
        lines={
            "asked": question.text if question is not None else "",
            "answered": item.prediction if item.prediction is not None else "(no answer)",
            "expected": item.reference or "",
            "score": f"{item.score:g}",
        },
    )


def thumbnail(image: str, folder: Path) -> str | None:
    """Return a small JPEG of a picture as a data URI; None where it cannot be read."""
    try:
        picture = load_image(source_of(image, folder))
    except FileError:
        return None
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _settings(run: Run) -> str:
    record = run.record
    rows = [[key, str(value)] for key, value in record["settings"].items()]
    rows += [["scored as the original (--compat)", "yes"]] if run.is_compat else []
    rows += [[f"scorer {key}", str(value)] for key, value in record["scorer"].items()]
    rows += [[key, str(path)] for key, path in record["files"].items() if path is not None]
    prompts = dict.fromkeys(str(answer.get("prompt", "")) for answer in run.answers()[:3])
    rows += [["prompt", prompt] for prompt in prompts]
    return section(f"Settings and prompts: {run.model}", table(["", ""], rows), level=3)


def _spread(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['low']:.2f} to {found['high']:.2f}"


def _spaced(items: Sequence[T], count: int) -> Sequence[T]:
    """Return some of the items, from beginning to end."""
    return items[:: max(1, len(items) // count)][:count]
