"""A benchmark of your own: a YAML file, and a JSONL of questions with their references.

    name: shelf                                    # default: the file's name
    questions: questions.jsonl                     # beside the YAML file, like `images`
    images: pictures
    match: exact                                   # exact | vqa | letter | yes-no | contains
    suffix: "\\nAnswer in one word."               # put behind every question; default: nothing
    max_new_tokens: 64

    {"question_id", "image"?, "text", "answer": text or list of texts, "category"?}

An answer counts when it agrees with one of its references; `vqa` counts agreement as VQAv2 does where a
question has three references or more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from llava.errors import ConfigError, DataError, DependencyError, FileError
from llava.eval.answers import match
from llava.eval.benchmark import Benchmark, Files, Item, Scoring
from llava.eval.metrics.evalai import normalise
from llava.eval.metrics.vqa import soft_accuracy
from llava.eval.questions import Question, read_questions
from llava.files import read_jsonl, read_text

_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = re.compile(r"[^\w\s']")
_LETTER = re.compile(r"\(?([A-Z])\)?(?:[.:)\s]|$)")


@dataclass(frozen=True)
class Rules:
    """What the YAML file says."""

    questions: str
    images: str = "."
    name: str = ""
    title: str = ""
    match: str = "exact"
    suffix: str = ""
    max_new_tokens: int = 128


class Custom(Benchmark):
    """A benchmark that a YAML file describes."""

    def __init__(self, folder: Path, rules: Rules) -> None:
        """`folder`: where the rules' paths start."""
        self._folder, self._rules = folder, rules
        self.name = rules.name  # type: ignore[misc]
        self.title = rules.title or rules.name  # type: ignore[misc]
        self.max_new_tokens = rules.max_new_tokens  # type: ignore[misc]
        self.download = f"{folder} has its files."  # type: ignore[misc]

    def files(self, root: Path) -> Files:
        """Return where the YAML file says the data is; `root` does not matter."""
        del root
        questions = self._folder / self._rules.questions
        return Files(questions=questions, images=self._folder / self._rules.images, annotations=questions)

    def questions(self, files: Files) -> list[Question]:
        """Return the questions with the suffix; they are recorded without it."""
        return [
            replace(question, text=question.text + self._rules.suffix, prompt=question.text)
            for question in read_questions(files.questions)
        ]

    def score(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Score by the rule that the YAML file names; raises FileError, DataError naming the line."""
        self.require(files.annotations)
        source = files.questions
        references = [_references(line, f"{source} line {n}") for n, line in read_jsonl(source)]
        questions, agree = read_questions(source), MATCHES[self._rules.match]
        matching = match(questions, records)
        items = []
        for question, own in zip(questions, references, strict=True):
            text = matching.text(question)
            score = 0.0 if text is None else agree(text, own)
            shown = " / ".join(dict.fromkeys(own))
            items.append(Item(question.id, score, question.cluster, question.category, text, shown))
        accuracy = 100 * sum(item.score for item in items) / len(items)
        return Scoring("accuracy", {"accuracy": accuracy}, items, None, notices=matching.notices)


def read_benchmark(path: Path) -> Custom:
    """Read the YAML file of a benchmark; raises FileError, ConfigError naming the field, DependencyError."""
    try:
        import yaml
    except ImportError:
        raise DependencyError.of_extra("PyYAML", "eval", "a benchmark in YAML") from None
    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise FileError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    known = {field.name: field.type for field in fields(Rules)}
    for name in values if isinstance(values, dict) else ():
        if name not in known:
            raise ConfigError.of_field("field", name, known, source=str(path))
    if not isinstance(values, dict) or not isinstance(values.get("questions"), str):
        raise ConfigError(f"{path} names no questions", remedy="Write: questions: FILE.jsonl")
    for name, value in values.items():
        wanted = int if name == "max_new_tokens" else str
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r} in {path}", remedy=f"Give {wanted.__name__}.")
    rules = Rules(**{"name": path.stem, **values})
    if rules.match not in MATCHES:
        raise ConfigError.of_field("match", rules.match, MATCHES, source=str(path))
    return Custom(path.parent, rules)


def _references(record: dict[str, Any], where: str) -> list[str]:
    answer = record.get("answer", record.get("answers"))
    references = [answer] if isinstance(answer, str) else answer
    if not isinstance(references, list) or not references or not all(isinstance(r, str) for r in references):
        raise DataError(f"{where}: answer is {answer!r}", remedy="Give a text or a list of texts.")
    return references


def plain(text: str) -> str:
    """Return a text without case, punctuation, articles and needless space."""
    words = _PUNCTUATION.sub(" ", text.lower()).split()
    return " ".join(word for word in words if word not in _ARTICLES)


def _exact(text: str, references: Sequence[str]) -> float:
    return float(text in references)


def _vqa(text: str, references: Sequence[str]) -> float:
    given, wanted = normalise(text), [normalise(reference) for reference in references]
    return soft_accuracy(given, wanted) if len(wanted) >= 3 else float(given in wanted)


def _letter(text: str, references: Sequence[str]) -> float:
    found = _LETTER.match(text.strip())
    letters = [reference.strip().strip("().").upper() for reference in references]
    return float(found is not None and found[1] in letters)


def _yes_no(text: str, references: Sequence[str]) -> float:
    said = [word for word in plain(text).split() if word in ("yes", "no")]
    return float(bool(said) and said[0] in [plain(reference) for reference in references])


def _contains(text: str, references: Sequence[str]) -> float:
    given = f" {plain(text)} "
    return float(any(f" {plain(reference)} " in given for reference in references))


MATCHES: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact": _exact,
    "vqa": _vqa,
    "letter": _letter,
    "yes-no": _yes_no,
    "contains": _contains,
}
