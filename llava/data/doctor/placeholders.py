"""Whether every picture has its `<image>`, and every `<image>` its picture.

Part of `samples.check`. A misspelled placeholder counts as one only where the numbers do not fit without it:
a text may speak of `<img>`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol

from llava.constants import DEFAULT_IMAGE_TOKEN

MISSPELLED: Final = re.compile(
    r"(?!(?-i:<image>))[<\[]\s*\|?\s*(?:image|images|img|imge|iamge|imag|picture|imagehere|image_here|image_token)"
    r"[ _-]?\d{0,2}\s*\|?\s*/?\s*[>\]]",
    re.I,
)
"""What stands for `<image>` in texts of other origin or by mistake."""


class _Turn(Protocol):
    @property
    def role(self) -> str: ...
    @property
    def text(self) -> str | None: ...


class _Sample(Protocol):
    @property
    def images(self) -> list[str | bytes]: ...
    def fault(self, code: str, detail: str) -> None: ...
    def has(self, *codes: str) -> bool: ...


def check_placeholders(turns: Sequence[_Turn], sample: _Sample) -> None:
    """Compare the number of placeholders with the number of pictures."""
    questions = [turn.text or "" for turn in turns if turn.role != "gpt"]
    answers = [turn.text or "" for turn in turns if turn.role == "gpt"]
    num_right = sum(text.count(DEFAULT_IMAGE_TOKEN) for text in questions)
    num_in_answers = sum(text.count(DEFAULT_IMAGE_TOKEN) for text in answers)
    wrong = [match[0] for text in questions for match in MISSPELLED.finditer(text)]
    num_pictures = len(sample.images)
    if num_in_answers:
        sample.fault("placeholder-in-answer", f"the answers hold {num_in_answers} <image>")
    # Pictures that cannot be told, or turns that cannot be read, were noted already.
    if sample.has("image-type", "image-empty", "value-missing", "value-type", "turn-type") or not turns:
        return
    if num_right == num_pictures:
        return
    if wrong and num_right < num_pictures:
        sample.fault("placeholder-misspelled", f"{wrong[0]!r} stands where <image> should")
        num_right += len(wrong)
        if num_right == num_pictures:
            return
    if num_in_answers and num_right + num_in_answers == num_pictures:
        return
    if not num_pictures:
        sample.fault("placeholder-without-picture", f"{num_right} <image> and no picture")
    elif not num_right:
        sample.fault("picture-without-placeholder", f"{num_pictures} picture(s) and no <image>")
    else:
        sample.fault("placeholder-count", f"{num_right} <image> for {num_pictures} picture(s)")
