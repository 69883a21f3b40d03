"""Which option an answer to a ScienceQA question names."""

from __future__ import annotations

import re
from collections.abc import Sequence

OPTIONS = ("A", "B", "C", "D", "E")
FAILED = "FAILED"
_STATED = re.compile(r"The answer is ([A-Z]).")
_STATED_WITH_PERIOD = re.compile(r"The answer is ([A-Z])\.")


def parse_letter(text: str) -> str:
    """Return the letter of an answer such as "B", "B. north" or one "The answer is B.", else "FAILED"."""
    if text in OPTIONS:
        return text
    if len(text) >= 3 and text[0] in OPTIONS and text[1:3] == ". ":
        return text[0]
    return parse_statement(text, _STATED)


def parse_statement(text: str, pattern: re.Pattern[str] = _STATED_WITH_PERIOD) -> str:
    """Return the letter of the one "The answer is X." in a text, "FAILED" if there is none or several."""
    found = pattern.findall(text)
    return str(found[0]) if len(found) == 1 else FAILED


def option_index(letter: str, choices: Sequence[str]) -> int:
    """Return the place of the option, -1 where the question has no such option."""
    letters = OPTIONS[: len(choices)]
    return letters.index(letter) if letter in letters else -1
