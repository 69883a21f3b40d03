"""Write docs/errors/CODE.md for every error class: words from error_page_texts.py, the rest from the code.

Status, Retry-After, hidden words, bases and the shapes in which an error is seen come from the code, so that
a page cannot say otherwise. `tests/test_error_pages.py` compares. Run: python -m scripts.write_error_pages
"""

from __future__ import annotations

import json
from pathlib import Path

from llava import errors
from llava.command import describe_error
from llava.errors import PAGES, LlavaError, classes
from llava.serve.frames import error_message
from llava.serve.http.errors import Treatment, error_fields, treatment_of
from scripts.error_page_texts import WORDS, Words

FOLDER = Path(__file__).parents[1] / PAGES
REQUEST_ID = "3f2c9d41"


def example(kind: type[LlavaError], words: Words) -> LlavaError:
    """Return an error as its page shows it."""
    cause, remedy = words.example
    if issubclass(kind, errors.ReportedError):
        return kind(cause, remedy=remedy, reported_code=kind.code)
    return kind(cause, remedy=remedy)


def page(kind: type[LlavaError]) -> str:
    """Return the page of a class."""
    words = WORDS[kind.code]
    error = example(kind, words)
    treatment = treatment_of(error)
    bases = [base for base in kind.__mro__[1:] if issubclass(base, LlavaError)]
    caught = ", ".join(f"[`{base.__name__}`]({base.code}.md)" for base in bases)
    body = json.dumps({"error": error_fields(error, REQUEST_ID)}, indent=2, ensure_ascii=False)
    frame = json.dumps(error_message(error, REQUEST_ID).to_json(), ensure_ascii=False)
    lines = [
        f"# `{kind.code}`: {kind.__name__}",
        "",
        words.happened + (f" Also caught as {caught}." if caught else ""),
        "",
        "## Causes, and what to do",
        "",
        "| Cause | What to do |",
        "|---|---|",
        *(f"| {cause} | {remedy} |" for cause, remedy in words.causes),
        "",
        "## How it looks",
        "",
        f"A command ends with exit code {kind.exit_code} and one line:",
        "",
        "```text",
        describe_error(error),
        "```",
        "",
        _status(treatment),
        "",
        "```json",
        body,
        "```",
        "",
        "In a stream that has begun, the same object is the last event. A controller or worker ends its"
        " stream with this frame:",
        "",
        "```json",
        frame,
        "```",
        "",
        "The page shows message, remedy, code, this file's name and request id in place of the answer, and no"
        " later question takes it for one.",
        "",
        "All codes: [errors.md](../errors.md).",
    ]
    return "\n".join(lines) + "\n"


def _status(treatment: Treatment) -> str:
    """Return how the API answers, in words."""
    said = f"The API answers with status {treatment.status}"
    if treatment.retry_after_s is not None:
        said += f" and `Retry-After: {treatment.retry_after_s}`"
    if treatment.words is not None:
        said += ", and keeps the words above for its own log, under the request id"
    return said + ":"


def main() -> None:
    """Write every page, and remove those of codes that are gone."""
    FOLDER.mkdir(exist_ok=True)
    wanted = {f"{kind.code}.md": page(kind) for kind in classes()}
    for path in FOLDER.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
