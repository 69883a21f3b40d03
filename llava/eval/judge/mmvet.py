"""MM-Vet's grader: a judge completes a table of right and wrong answers with one number.

Source of the requests, of how replies are read and of the tables: `mm-vet_evaluator.py` of yuweihao/MM-Vet.
Its few-shot prompt is made of records of the data set, whose licence allows no copy here: it is read from
the evaluator's own file, or from a text file.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llava.errors import DataError, FileError, RemoteError
from llava.eval.judge.judge import Judge
from llava.eval.judge.options import Judging
from llava.eval.judge.replies import JudgeRequest
from llava.eval.judge.trust import anchor_items, drift, report_path, trust_lines
from llava.files import read_json, read_text, write_json

MAX_TOKENS = 3
TEMPERATURES = (0.0, 0.0, 0.5, 1.0, 1.5, 2.0)
"""Of the first request and of each further one while replies cannot be read."""
AGAIN = "\nPredict the correctness of the answer (digit): "
EVALUATOR = "https://github.com/yuweihao/MM-Vet/blob/main/mm-vet_evaluator.py"

Grades = dict[str, dict[str, list[Any]]]
"""By question: "model", "content" and "score", one entry a run, as the original stores them."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A question of mm-vet.json."""

    image: str
    question: str
    answer: str
    """With <AND> and <OR>."""
    capabilities: tuple[str, ...]

    def request(self, prompt: str, prediction: str, *, run: int, attempt: int) -> JudgeRequest:
        """Return what is asked about an answer, in a run and at the given attempt, both from 0."""
        answer = self.answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        content = f"{prompt}\n{self.question} | {answer} | {prediction} | {AGAIN if attempt else ''}"
        return JudgeRequest(({"role": "user", "content": content},), TEMPERATURES[attempt], MAX_TOKENS, run)


def read_references(path: Path, subset: Path | None = None) -> dict[str, Reference]:
    """Return the questions by id; `subset` is a JSON list of ids. Raises FileError, DataError."""
    wanted = None if subset is None else set(read_json(subset))
    try:
        found = {
            identity: Reference(own["imagename"], own["question"], own["answer"], tuple(own["capability"]))
            for identity, own in read_json(path).items()
            if wanted is None or identity in wanted
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not MM-Vet's data: {error!r}", remedy="Give mm-vet.json.") from error
    if wanted is not None and wanted - set(found):
        raise DataError(f"{subset}: {min(wanted - set(found))} is not in {path}")
    return found


def read_prompt(path: Path) -> str:
    """Return the few-shot prompt: of the evaluator's .py file what it calls `prompt`, else the whole text.

    Raises FileError that says where it is when there is none.
    """
    if not path.exists():
        raise FileError(
            f"{path} does not exist, which has the few-shot prompt of MM-Vet's grader",
            remedy=f"Put {EVALUATOR} there, or a text file of the prompt; --prompt says where it is.",
        )
    text = read_text(path)
    if path.suffix != ".py":
        return text
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise FileError(f"{path} is not Python: {error}") from error
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Constant):
            continue
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        if "prompt" in names and isinstance(node.value.value, str):
            return node.value.value
    raise FileError(f"{path} assigns no text to `prompt`", remedy=f"Take {EVALUATOR}.")


def read_grade(reply: str) -> float | None:
    """Return the grade that a reply begins with, from 0 to 1; None where there is none."""
    try:
        score = float(first_word(reply))
    except ValueError:
        return None
    return score if 0 <= score <= 1 else None


def read_scores(reply: str) -> tuple[float] | None:
    """Return the grade as the scores of a reply, which it has one of; None where there is none."""
    score = read_grade(reply)
    return None if score is None else (score,)


def first_word(reply: str) -> str:
    """Return what the original keeps of a reply."""
    return reply.split(" ")[0].strip()


def grade(
    references: Mapping[str, Reference],
    predictions: Mapping[str, str],
    judge: Judge,
    prompt: str,
    target: Path,
    *,
    num_run: int = 1,
    compat: bool = False,
) -> Grades:
    """Grade what is not graded yet, `num_run` times, and write the original's file of grades.

    compat: leave the last of six replies unread, as the original does. Raises what the judge raises;
    `target` then holds what was graded until then.
    """
    grades: Grades = read_json(target) if target.exists() else {}
    answered = [identity for identity in references if identity in predictions]
    last_read = len(TEMPERATURES) - 1 if compat else len(TEMPERATURES)

    def ask(identity: str, run: int) -> tuple[str, float | None]:
        content = ""
        for attempt in range(len(TEMPERATURES)):
            wanted = references[identity].request(prompt, predictions[identity], run=run, attempt=attempt)
            content = first_word(judge.ask(wanted))
            score = read_grade(content)
            if score is not None and attempt < last_read:
                return content, score
        return content, None

    todo = [
        (identity, run)
        for run in range(num_run)
        for identity in answered
        if len(grades.get(identity, {}).get("score", ())) <= run
    ]
    judge.announce(
        [references[name].request(prompt, predictions[name], run=run, attempt=0) for name, run in todo]
    )
    try:
        for (identity, _), result in judge.map(lambda own: ask(*own), todo):
            if isinstance(result, RemoteError):
                raise result
            own = grades.setdefault(identity, {"model": [], "content": [], "score": []})
            for name, value in (("model", judge.model), ("content", result[0]), ("score", result[1] or 0.0)):
                own[name].append(value)
    finally:
        write_json(target, grades)
    return grades


def grade_and_check(
    references: Mapping[str, Reference],
    predictions: Mapping[str, str],
    judge: Judge,
    prompt: str,
    target: Path,
    judging: Judging,
    *,
    num_run: int = 1,
) -> tuple[Grades, dict[str, Any]]:
    """Grade as `grade` does, and write beside `target` what is found about the judge; returns both.

    Raises DataError for an anchor that cannot be used, before anything is asked, and what `grade` raises.
    """
    anchor = None if judging.anchor is None else anchor_items(judging, read_scores)
    grades = grade(
        references, predictions, judge, prompt, target, num_run=num_run, compat=judging.is_compat
    )  # fmt: skip
    report: dict[str, Any] = {} if anchor is None else {"drift": drift(judge, anchor, read_scores)}
    write_json(report_path(target), report | {"judge": judge.describe(), "notices": trust_lines(report)})
    return grades, report


def unread(grades: Grades) -> list[str]:
    """Return the questions whose last reply in some run is no grade."""
    return [
        name for name, own in grades.items() if any(read_grade(str(text)) is None for text in own["content"])
    ]


def tables(
    references: Mapping[str, Reference],
    grades: Grades,
    *,
    num_run: int = 1,
    decimals: int = 1,
    compat: bool = False,
) -> dict[str, dict[str, Any]]:
    """Return the original's two tables, "cap" by capability and "cap_int" by exact set of capabilities.

    Each has percentages, "total", "std" (population, over runs) and "runs". A question without an answer
    counts 0; one whose grade cannot be read counts 0 with `compat`, else not at all.
    """
    left_out: Collection[str] = () if compat else set(unread(grades))
    kept = {name: own for name, own in references.items() if name not in left_out}
    if not kept:
        raise DataError("no grade can be read", remedy="Have the answers judged again.")
    runs = [
        {name: float(grades[name]["score"][run]) if name in grades else 0.0 for name in kept}
        for run in range(num_run)
    ]
    total = [100 * sum(run.values()) / len(run) for run in runs]
    summed = {
        "total": round(float(np.mean(total)), decimals),
        "std": round(float(np.std(total)), decimals),
        "runs": str([round(value, decimals) for value in total]),
    }
    sets = {name: ["_".join(sorted(own.capabilities))] for name, own in kept.items()}
    single = {name: list(dict.fromkeys(own.capabilities)) for name, own in kept.items()}
    return {
        "cap": _percentages(single, runs, decimals) | summed,
        "cap_int": _percentages(sets, runs, decimals) | summed,
    }


def _percentages(
    groups: Mapping[str, Sequence[str]], runs: Sequence[Mapping[str, float]], decimals: int
) -> dict[str, Any]:
    """Return the mean percentage of each group over runs, the largest group first."""
    members: dict[str, list[str]] = {}
    for name, own in groups.items():
        for group in own:
            members.setdefault(group, []).append(name)
    return {
        group: round(
            float(np.mean([sum(run[name] for name in own) / len(own) * 100 for run in runs])), decimals
        )
        for group, own in sorted(members.items(), key=lambda pair: -len(pair[1]))
    }
