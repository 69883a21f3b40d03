"""How far to believe a judge: whether the order of the answers moves it, and whether it has changed since.

What is found stands in `VERDICTS.report.json` beside the judge's verdicts, as "order" and "drift".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llava.errors import DataError, RemoteError
from llava.eval.judge.judge import Judge
from llava.eval.judge.options import Judging
from llava.eval.judge.replies import StoredReply, read_store
from llava.eval.judge.review import is_score, scores_of
from llava.eval.statistics import seed_spread
from llava.files import read_json

MIN_ITEMS = 2
FOUND = ("order", "drift")

Read = Callable[[str], Sequence[float] | None]
"""From a reply to its scores, None where it has none."""


def beside(output: Path, ending: str) -> Path:
    """Return the file that stands beside the judge's verdicts under its own ending."""
    return output.with_name(f"{output.name}.{ending}")


def report_path(output: Path) -> Path:
    """Return where the report on a judge's verdicts is."""
    return beside(output, "report.json")


def stored_trust(output: Path) -> dict[str, Any]:
    """Return what was found about the judge of some verdicts, and who it was; empty where nothing was.

    Raises FileError for a report that cannot be read.
    """
    path = report_path(output)
    report = read_json(path) if path.exists() else {}
    found = {name: report[name] for name in FOUND if name in report}
    return found | {"judge": report["judge"]["model"]} if found else {}


def trust_lines(found: Mapping[str, Any]) -> list[str]:
    """Say in words what "order" and "drift" are, as far as they are there."""
    lines = order_lines(found["order"]) if "order" in found else []
    return lines + (drift_lines(found["drift"]) if "drift" in found else [])


def order_effect(
    records: Sequence[Mapping[str, Any]], swapped: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Compare reviews with those of the same answers shown the other way round, as JSON values.

    Scores are always (reference, model). `agreement`: the share of questions where both orders prefer the
    same answer, or neither; `disagreeing`: the others. `position_bias`: points that an answer gains by
    standing first, with its 95 % interval. `mean`: the scores of reference and model over both orders, 0 to
    10; `relative`: the second in percent of the first.
    """
    others = {str(record["question_id"]): scores_of(record) for record in swapped}
    pairs = {
        str(record["question_id"]): (scores_of(record), others[str(record["question_id"])])
        for record in records
        if str(record["question_id"]) in others
    }
    pairs = {
        name: pair for name, pair in pairs.items() if all(is_score(score) for own in pair for score in own)
    }
    both = list(pairs.values())
    if len(both) < MIN_ITEMS:
        return {"num_questions": len(both)}
    disagreeing = [
        name for name, (one, two) in pairs.items() if _sign(one[0] - one[1]) != _sign(two[0] - two[1])
    ]
    gains = [((one[0] - one[1]) + (two[1] - two[0])) / 2 for one, two in both]
    first, second = (sum(one[place] + two[place] for one, two in both) for place in (0, 1))
    return {
        "num_questions": len(both),
        "agreement": 1 - len(disagreeing) / len(both),
        "disagreeing": disagreeing,
        "position_bias": _mean(gains),
        "mean": [first / len(both) / 2, second / len(both) / 2],
        "relative": 100 * second / first if first else None,
    }


def order_lines(effect: Mapping[str, Any]) -> list[str]:
    """Say in words what `order_effect` found."""
    if "agreement" not in effect:
        return ["too few questions were judged in both orders to compare them"]
    bias = effect["position_bias"]
    both = "" if effect["relative"] is None else f"; over both orders the model has {effect['relative']:.1f}"
    return [
        f"both orders prefer the same answer in {100 * effect['agreement']:.1f} % of "
        f"{effect['num_questions']} questions; standing first is worth {bias['mean']:+.2f} points "
        f"({bias['low']:+.2f} to {bias['high']:+.2f}){both}"
    ]


def anchor_items(judging: Judging, read: Read) -> list[StoredReply]:
    """Return the requests of the anchor to ask again, spread evenly over those whose replies can be read.

    Raises FileError, DataError for a store without two replies that can be read.
    """
    anchor = judging.anchor
    assert anchor is not None
    stored = [own for own in read_store(anchor).values() if read(own.reply.text) is not None]
    if len(stored) < MIN_ITEMS:
        raise DataError(
            f"{anchor} has {len(stored)} replies that can be read", remedy="Give another --anchor."
        )
    step = max(1.0, len(stored) / judging.num_anchor_items)
    return [stored[int(place * step)] for place in range(min(judging.num_anchor_items, len(stored)))]


def drift(judge: Judge, chosen: Sequence[StoredReply], read: Read) -> dict[str, Any]:
    """Ask today's judge what was asked then, and return how far its scores moved, as JSON values.

    `differences`: today less then, for each score of a reply, with 95 % intervals; `has_moved`: whether one
    of them excludes 0. Raises RemoteError, UsageError.
    """
    sample = f"anchor {datetime.now(timezone.utc).date().isoformat()}"
    requests = {id(own): replace(own.request, sample=f"{sample} of {own.request.sample}") for own in chosen}
    judge.announce(list(requests.values()))

    def again(own: StoredReply) -> Sequence[float] | None:
        return judge.ask_until(requests[id(own)], read).value

    moved, num_unread = [], 0
    for own, now in judge.map(again, chosen):
        before = read(own.reply.text)
        if now is None or isinstance(now, RemoteError) or before is None:
            num_unread += 1
        else:
            moved.append([new - old for new, old in zip(now, before, strict=True)])
    record: dict[str, Any] = {
        "anchor_model": sorted({own.model for own in chosen}),
        "anchor_asked_at": [min(own.asked_at for own in chosen), max(own.asked_at for own in chosen)],
        "model": judge.model,
        "num_items": len(moved),
        "num_unread": num_unread,
    }
    if len(moved) >= MIN_ITEMS:
        differences = [_mean([own[place] for own in moved]) for place in range(len(moved[0]))]
        record["differences"] = differences
        record["has_moved"] = any(own["low"] > 0 or own["high"] < 0 for own in differences)
    return record


def drift_lines(record: Mapping[str, Any]) -> list[str]:
    """Say in words what `drift` found."""
    names = ", ".join(record["anchor_model"])
    since = record["anchor_asked_at"][0][:10]
    if "differences" not in record:
        return [f"drift against {names} of {since}: too few replies could be read"]
    shown = ", ".join(
        f"{own['mean']:+.2f} ({own['low']:+.2f} to {own['high']:+.2f})" for own in record["differences"]
    )
    verdict = "scores of then and now are not comparable" if record["has_moved"] else "no drift can be seen"
    return [f"drift against {names} of {since}, {record['num_items']} replies: {shown}: {verdict}"]


def _mean(values: Sequence[float]) -> dict[str, float]:
    found = seed_spread(values)
    return {"mean": found.value, "low": found.low, "high": found.high}


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
