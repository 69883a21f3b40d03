"""The requests of a measurement: pictures of our own generator, questions of a wanted length, none twice."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from llava.engine.request import Request, SamplingParams
from llava.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

Images = Literal["same", "distinct", "none"]
MAX_WORDS = 1 << 20
_WORDS = (
    *("apple", "river", "stone", "window", "garden", "paper", "yellow", "morning", "table", "music"),
    *("winter", "bridge", "silver", "letter", "forest", "orange", "button", "circle", "market", "planet"),
)
_QUESTION = "Describe everything that is in the picture, one thing after the other."
_TEXT_QUESTION = "Tell a long story about these words."


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is asked."""

    num_new_tokens: int = 64
    """Tokens of an answer; models that end theirs earlier are not made to go on."""
    images: Images = "distinct"
    """One picture a request: always another, always the same, or none."""
    num_words: int = 0
    """Words in front of the question, to make the prompt longer."""

    def __post_init__(self) -> None:
        if self.images not in get_args(Images):
            raise ConfigError.of_field("images", self.images, get_args(Images))
        if not 0 <= self.num_words <= MAX_WORDS:
            raise ConfigError(f"num_words is {self.num_words!r}", remedy=f"It must be 0 to {MAX_WORDS}.")
        SamplingParams(max_new_tokens=self.num_new_tokens)  # checks it

    def request(self, number: int) -> Request:
        """Return the request of a number; with other numbers, nothing but the template is shared.

        With `images` "same" the picture is shared, and with it the beginning of the prompt.
        """
        rng = random.Random(f"bench {number}")
        words = [rng.choice(_WORDS) for _ in range(self.num_words)]
        question = _TEXT_QUESTION if self.images == "none" else _QUESTION
        text = " ".join([f"{number}:", *words, question])
        pictures = [] if self.images == "none" else [draw_picture(0 if self.images == "same" else number)]
        return Request.of_question(text, pictures, SamplingParams(max_new_tokens=self.num_new_tokens))


def draw_picture(number: int) -> Image:
    """Return a picture of the embedded model's world."""
    from llava.demo.drawing import draw
    from llava.demo.scenes import make_scene

    return draw(make_scene(number, "held-out")).image


def words_for(wanted_tokens: int, *, without: int, with_words: int, num_words: int) -> int:
    """Return how many words make a prompt of `wanted_tokens`.

    without: tokens of a prompt with no word; with_words: of one with `num_words`. 0 where none is too many.
    """
    per_word = max(0.5, (with_words - without) / num_words)
    return max(0, round((wanted_tokens - without) / per_word))
