"""Votes on answers and on pairs of answers: kept in a JSONL, summed up, and exported for preference training.

    llava votes FILE [--json] [--export-dpo OUT]

A line is {"type": "answer", "vote": "up" | "down" | "flag", "model", "time"} or {"type": "pair", "vote":
"left" | "right" | "tie" | "both_bad", "left", "right", "blind", "seed", "time"}. What was asked and answered
(`dialogue`, `left_answer`, `right_answer`) is in it only where the page was told to keep dialogues, and only
such votes can be exported.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from llava.command import EXIT_OK, note, say
from llava.errors import DataError, UsageError
from llava.files import read_jsonl, write_jsonl
from llava.serve.web.appending import append_line

AnswerVoteKind = Literal["up", "down", "flag"]
PairVoteKind = Literal["left", "right", "tie", "both_bad"]
_SCORES: Final[dict[str, float]] = {"left": 1.0, "right": 0.0, "tie": 0.5, "both_bad": 0.5}


@dataclass(frozen=True, slots=True)
class AnswerVote:
    """What somebody thinks of one answer."""

    vote: AnswerVoteKind
    model: str


@dataclass(frozen=True, slots=True)
class PairVote:
    """Which of two answers to the same question somebody prefers."""

    vote: PairVoteKind
    left: str
    """Model of the answer on the left."""
    right: str
    blind: bool = False
    """Whether the names of the models were hidden until the vote."""
    seed: int | None = None
    """With which both were sampled."""
    dialogue: Sequence[Mapping[str, Any]] | None = None
    """OpenAI's chat messages up to the question; None where dialogues are not kept."""
    left_answer: str | None = None
    right_answer: str | None = None


def append_vote(path: Path, vote: AnswerVote | PairVote, *, now: float | None = None) -> None:
    """Append a vote, safely from several threads and processes; raises FileError."""
    kind = "answer" if isinstance(vote, AnswerVote) else "pair"
    fields = {name: value for name, value in asdict(vote).items() if value is not None}
    seconds = round(time.time() if now is None else now, 3)
    append_line(path, {"type": kind, **fields, "time": seconds})


def read_votes(path: Path) -> Iterator[AnswerVote | PairVote]:
    """Yield the votes of a file; raises FileError, or DataError naming the line."""
    for number, value in read_jsonl(path):
        try:
            yield _vote_of(value)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"no vote: {error}", remedy="Mend or remove the line.", where=f"{path} line {number}"
            ) from None


def _vote_of(value: Any) -> AnswerVote | PairVote:
    if not isinstance(value, dict):
        raise TypeError("it is no JSON object")
    kind = AnswerVote if value.get("type") == "answer" else PairVote
    if kind is PairVote and value.get("type") != "pair":
        raise ValueError(f"type is {value.get('type')!r}, and neither 'answer' nor 'pair'")
    allowed = get_args(AnswerVoteKind if kind is AnswerVote else PairVoteKind)
    if value.get("vote") not in allowed:
        raise ValueError(f"vote is {value.get('vote')!r}, and none of {', '.join(allowed)}")
    vote = kind(**{name: item for name, item in value.items() if name not in ("type", "time")})
    names = [vote.model] if isinstance(vote, AnswerVote) else [vote.left, vote.right]
    if not all(isinstance(name, str) and name for name in names):
        raise TypeError("a model has no name")
    return vote


def preferences(votes: Iterable[AnswerVote | PairVote]) -> Iterator[dict[str, Any]]:
    """Yield {prompt, images, chosen, rejected} for each decided pair whose dialogue was kept.

    prompt: the chat messages with text alone, one `<image>` and a line break for each picture; images: data
    URLs in the same order; chosen, rejected: one assistant's message each.
    """
    for vote in votes:
        if not isinstance(vote, PairVote) or vote.vote not in ("left", "right"):
            continue
        if vote.dialogue is None or vote.left_answer is None or vote.right_answer is None:
            continue
        prompt, images = _split(vote.dialogue)
        answers = [vote.left_answer, vote.right_answer]
        chosen, rejected = answers if vote.vote == "left" else answers[::-1]
        if chosen == rejected:
            continue  # nothing can be learnt from it
        yield {
            "prompt": prompt,
            "images": images,
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }


def _split(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, str]], list[str]]:
    prompt, images = [], []
    for message in messages:
        content = message["content"]
        parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = ""
        for part in parts:
            if part["type"] == "image_url":
                images.append(part["image_url"]["url"])
                text += "<image>\n"
            else:
                text += part["text"].replace("<image>", "")  # the word would count as a picture
        prompt.append({"role": message["role"], "content": text})
    return prompt, images


def summary(votes: Iterable[AnswerVote | PairVote]) -> dict[str, Any]:
    """Return {"answers": counts by model, "pairs": counts by two models, "strengths": Bradley-Terry}.

    The order of two models in "pairs" is by name, whatever side each was shown on.
    """
    from llava.serve.web.strengths import strengths

    answers: dict[str, Counter[str]] = {}
    pairs: dict[tuple[str, str], Counter[str]] = {}
    games: list[tuple[str, str, float]] = []
    for vote in votes:
        if isinstance(vote, AnswerVote):
            answers.setdefault(vote.model, Counter())[vote.vote] += 1
        elif vote.left != vote.right:
            games.append((vote.left, vote.right, _SCORES[vote.vote]))
            first, second = sorted((vote.left, vote.right))
            winner = {"left": vote.left, "right": vote.right}.get(vote.vote)
            outcome = vote.vote if winner is None else "first" if winner == first else "second"
            pairs.setdefault((first, second), Counter())[outcome] += 1
    return {
        "answers": {
            name: {kind: counts[kind] for kind in get_args(AnswerVoteKind)}
            for name, counts in sorted(answers.items())
        },
        "pairs": [
            {
                "first": first,
                "second": second,
                "first_wins": counts["first"],
                "second_wins": counts["second"],
                "ties": counts["tie"],
                "both_bad": counts["both_bad"],
            }
            for (first, second), counts in sorted(pairs.items())
        ],
        "strengths": [asdict(strength) for strength in strengths(games)],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `llava votes`."""
    parser.description = "Sum up the votes of the web page, and export them for preference training (DPO)."
    parser.add_argument("file", help="the JSONL that the page writes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--export-dpo", metavar="OUT", help="write {prompt, images, chosen, rejected} lines")


def run(args: argparse.Namespace) -> int:
    """Print the summary, or write the preferences."""
    votes = list(read_votes(Path(args.file)))
    if args.export_dpo is not None:
        records = list(preferences(votes))
        if not records:
            raise UsageError(
                f"{args.file} has no decided pair with its dialogue",
                remedy="Let the page keep dialogues: --log-conversations.",
            )
        write_jsonl(Path(args.export_dpo), records)
        note(f"{len(records)} preferences written to {args.export_dpo}")
        return EXIT_OK
    found = summary(votes)
    say(json.dumps(found, indent=2, ensure_ascii=False) if args.json else "\n".join(_lines(found)))
    return EXIT_OK


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    for name, counts in found["answers"].items():
        yield f"{name}: {counts['up']} up, {counts['down']} down, {counts['flag']} flagged"
    for pair in found["pairs"]:
        yield (
            f"{pair['first']} : {pair['second']}  {pair['first_wins']} : {pair['second_wins']}, "
            f"{pair['ties']} ties, {pair['both_bad']} both bad"
        )
    if found["strengths"]:
        yield "Bradley-Terry strengths with 95 % intervals (1 more: preferred 73 % of the time):"
    for item in found["strengths"]:
        group = f"  (group {item['group']})" if item["group"] else ""
        yield f"{item['strength']:+.2f}  [{item['low']:+.2f}, {item['high']:+.2f}]  {item['model']}{group}"
    if not found["answers"] and not found["pairs"]:
        yield "no votes"
