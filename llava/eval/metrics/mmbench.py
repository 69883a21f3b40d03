"""Which option an answer to an MMBench question means, by letter or else by the option's own words.

The rules are those of the official harness without a judge model: what cannot be inferred is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_FAILED_CALL = "Failed to obtain answer via API"
_REFUSED = "Z"
_TO_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_STATED = re.compile(r"(?:correct )?answer is \**([A-D])", re.IGNORECASE)
_LAST_WORDS = 5


def infer_option(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that the answer means, "Z" for a refusal, None where it cannot be inferred."""
    return infer_letter(answer, options) or infer_words(answer, options)


def infer_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the option that is named by its letter, "Z" for a refusal, else None."""
    if _FAILED_CALL in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return _REFUSED
    words = answer.translate(_TO_SPACES).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - _LAST_WORDS:
        return named[0]
    if not named and _REFUSED in words:
        return _REFUSED
    stated = _STATED.search(answer)
    letter = stated[1].upper() if stated else None
    return letter if letter in options else None


def infer_words(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the only option whose text the answer holds, None where the answer is long or names several."""
    if len(answer) > 2 * sum(len(text) for text in options.values()):
        return None
    held = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return held[0] if len(held) == 1 else None
