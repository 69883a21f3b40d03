"""Cut a training sample to length: whole rounds go first, and a picture is never cut.

Between `supervise` (text to ids and labels) and `samples`. The original cut text tokens at `model_max_length`
before pictures were expanded, so a sample could be longer than the limit by its pictures, or lose a picture's
place while the picture itself stayed (spec, defect 21).

N features per picture.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import DataError
from llava.processing.supervision import Supervised

Truncation = Literal["turns", "original"]
Turns = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Cut:
    """A sample that fits, and what was taken from it."""

    sample: Supervised
    num_dropped_rounds: int = 0
    """Questions with their answers that were left out at the end."""
    is_answer_cut: bool = False
    """Whether the end of an answer was cut off."""

    @property
    def is_truncated(self) -> bool:
        """Whether anything was taken."""
        return bool(self.num_dropped_rounds) or self.is_answer_cut


def expanded_length(input_ids: Sequence[int], num_image_tokens: int) -> int:
    """Return the positions that ids with one -200 per picture take in the model."""
    return len(input_ids) + input_ids.count(IMAGE_TOKEN_INDEX) * (num_image_tokens - 1)


def cut_turns(
    turns: Turns, encode: Callable[[Turns], Supervised], *, max_length: int, num_image_tokens: int
) -> Cut:
    """Leave out rounds from the end until text and pictures fit `max_length` positions.

    encode: gives ids and labels of some first turns, with no limit of its own.
    A first round that is too long alone loses the end of its answer. Raises DataError when not even its
    question, its pictures and one token of the answer fit.
    """

    def length(sample: Supervised) -> int:
        return expanded_length(sample.input_ids, num_image_tokens)

    whole = encode(turns)
    if length(whole) <= max_length:
        return Cut(whole)
    ends = _round_ends(turns)
    # More rounds are never shorter, so the most that fit are found by halving.
    num_kept = bisect.bisect_right(
        range(1, len(ends)), max_length, key=lambda num: length(encode(turns[: ends[num - 1]]))
    )
    first = encode(turns[: ends[max(num_kept, 1) - 1]])
    num_dropped = len(ends) - max(num_kept, 1)
    if num_kept:
        return Cut(first, num_dropped)
    return Cut(_cut_answer(first, max_length, num_image_tokens), num_dropped, is_answer_cut=True)


def cut_ids(sample: Supervised, *, max_length: int) -> Cut:
    """Cut at `max_length` ids, a picture counting as one, as the original does in tokenizer and collator."""
    if len(sample.input_ids) <= max_length:
        return Cut(sample)
    return Cut(Supervised(sample.input_ids[:max_length], sample.labels[:max_length]), is_answer_cut=True)


def _round_ends(turns: Turns) -> list[int]:
    """Return for each round the number of turns up to its end; a round begins with a question."""
    starts = [index for index, turn in enumerate(turns) if turn.get("from") == "human"]
    return [*starts[1:], len(turns)]


def _cut_answer(sample: Supervised, max_length: int, num_image_tokens: int) -> Supervised:
    """Cut ids at the end, but never a picture nor all that is trained."""
    ids, labels = sample
    keep = max_length - ids.count(IMAGE_TOKEN_INDEX) * (num_image_tokens - 1)
    is_whole = keep > 0 and IMAGE_TOKEN_INDEX not in ids[keep:]
    if not is_whole or all(label == IGNORE_INDEX for label in labels[1:keep]):
        raise DataError(
            f"the first question and its pictures leave no room for an answer: the sample takes "
            f"{expanded_length(ids, num_image_tokens)} positions, and {max_length} are allowed",
            remedy="Raise data.max_length, or shorten the question.",
        )
    return Supervised(ids[:keep], labels[:keep])
