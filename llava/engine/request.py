"""What goes into an engine and what comes out: requests, sampling parameters, answers. No torch in here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from llava.errors import ConfigError, UsageError
from llava.templates import PICTURE, Picture, Turn

if TYPE_CHECKING:
    from llava.processing.images import ImageSource

FinishReason = Literal["stop", "length", "cancelled"]

MAX_NEW_TOKENS_LIMIT = 1 << 20
MAX_STOP_STRINGS = 16
MAX_LOGPROBS = 20
MAX_BEAMS = 16
MAX_CHOICES = 16
MAX_SCHEMA_CHARACTERS = 50_000
"""A grammar's cost grows with the square of its alternatives; this many compile within about a second."""


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """The answer is JSON that fits a schema."""

    schema: str | None = None
    """A JSON Schema as JSON, a ConfigError if it is too long or no JSON object; None is any object."""
    name: str = "answer"
    """What endpoints elsewhere are told that it is called."""
    is_strict: bool | None = None
    """OpenAI's `strict`, for endpoints elsewhere; engines of this process hold every schema exactly."""

    def __post_init__(self) -> None:
        if self.schema is not None and len(self.schema) > MAX_SCHEMA_CHARACTERS:
            raise ConfigError(
                f"the JSON schema has {len(self.schema)} characters",
                remedy=f"Give one of at most {MAX_SCHEMA_CHARACTERS}.",
            )
        try:
            is_object = self.schema is None or isinstance(json.loads(self.schema), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise ConfigError("the JSON schema is no JSON object", remedy='Give one, as {"type": "object"}.')

    @classmethod
    def of_schema(cls, schema: Mapping[str, object]) -> JsonFormat:
        """Take a schema as Python values; its properties are answered in their order here."""
        return cls(json.dumps(schema))

    def to_value(self) -> dict[str, object] | None:
        """Return the schema as Python values."""
        return json.loads(self.schema) if self.schema is not None else None


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when an answer ends. A number out of bounds is a ConfigError."""

    temperature: float = 0.0
    """0 is greedy; otherwise logits are divided by it. At most 100."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probabilities reach this sum; (0, 1]."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 means all."""
    repetition_penalty: float = 1.0
    """Logits of tokens seen in prompt or answer are divided by it (multiplied when negative); (0, 10]."""
    max_new_tokens: int = 512
    """The answer ends with finish reason "length" after so many tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer, besides the template's own and the end-of-sequence token."""
    seed: int | None = None
    """Makes sampling repeatable; None draws a fresh seed."""
    num_beams: int = 1
    """Above 1: beam search over so many beams, greedy, delivered in one piece."""
    logprobs: int | None = None
    """Report each token's log-probability, and those of so many of the likeliest; None reports none."""
    response_format: JsonFormat | None = None
    """What the answer is held to, token by token; None holds it to nothing."""

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, 100)
        _check("top_p", self.top_p, 0, 1, open_low=True)
        _check("top_k", self.top_k, 0, 1 << 30)
        _check("repetition_penalty", self.repetition_penalty, 0, 10, open_low=True)
        _check("max_new_tokens", self.max_new_tokens, 1, MAX_NEW_TOKENS_LIMIT)
        _check("num_beams", self.num_beams, 1, MAX_BEAMS)
        if self.seed is not None:
            _check("seed", self.seed, 0, (1 << 63) - 1)
        if self.logprobs is not None:
            _check("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.num_beams > 1 and (not self.is_greedy or self.logprobs is not None):
            raise ConfigError(
                f"num_beams is {self.num_beams} with sampling or log-probabilities",
                remedy="Beam search is greedy: leave temperature at 0 and logprobs unset.",
            )
        if self.num_beams > 1 and self.response_format is not None:
            raise ConfigError(
                f"num_beams is {self.num_beams} with a response format",
                remedy="Beam search holds answers to no format: leave num_beams at 1.",
            )
        stop: object = self.stop  # a lone string is a tuple of strings to Python, and a mistake to us
        if isinstance(stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"stop is {self.stop!r}", remedy="Give a tuple of non-empty strings.")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise ConfigError(
                f"{len(self.stop)} stop strings given", remedy=f"Give at most {MAX_STOP_STRINGS}."
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken at every step."""
        return self.temperature == 0

    def to_dict(self) -> dict[str, object]:
        """Return the fields by name, as JSON values; a response format only where there is one."""
        fields = {**asdict(self), "stop": list(self.stop)}
        if self.response_format is None:
            # Answers are compared with those that were stored before there were formats.
            del fields["response_format"]
        return fields


def _check(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}", remedy="Give a finite number.")
    if not (low < value <= high if open_low else low <= value <= high):
        interval = f"{'above' if open_low else 'at least'} {low:g} and at most {high:g}"
        raise ConfigError(f"{name} is {value!r}", remedy=f"It must be {interval}.")


@dataclass(frozen=True, slots=True)
class Request:
    """One answer wanted: either a dialogue (`turns`) or a rendered prompt with `<image>` placeholders."""

    turns: Sequence[Turn] = ()
    """The dialogue so far; the last turn is the user's. Contains PICTURE once per picture."""
    prompt: str | None = None
    """A prompt rendered elsewhere, in which every `<image>` stands for a picture."""
    images: Sequence[ImageSource] = ()
    """The pictures, in the order of their placeholders."""
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        if (self.prompt is None) == (not self.turns):
            raise UsageError(
                "a request needs either turns or a prompt", remedy="Give exactly one of the two."
            )

    @classmethod
    def of_question(
        cls, question: str, images: Sequence[ImageSource] = (), sampling: SamplingParams | None = None
    ) -> Request:
        """Ask one question about pictures, which come first, each on a line of its own (as in LLaVA-1.5)."""
        pictures: tuple[str | Picture, ...] = (PICTURE, "\n") * len(images)
        turn = Turn("user", (*pictures, question))
        return cls(turns=(turn,), images=images, sampling=sampling or SamplingParams())


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of one answer went, in seconds of wall clock."""

    first_token_s: float
    """From submission to the first token: waiting, pictures, prompt and one step."""
    total_s: float
    queued_s: float = 0.0
    """Of `first_token_s`: from submission until the engine took the request up."""
    image_s: float = 0.0
    """Of `first_token_s`: the vision tower; 0 when the features were remembered."""

    def tokens_per_second(self, num_new_tokens: int) -> float:
        """Return the decoding rate after the first token; 0 when there was only one."""
        decode_s = self.total_s - self.first_token_s
        return (num_new_tokens - 1) / decode_s if num_new_tokens > 1 and decode_s > 0 else 0.0


class Choice(NamedTuple):
    """A token that could have come next, and the natural logarithm of its probability."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer: how likely it was before temperature and filters, and what else was likely."""

    chosen: Choice
    top: tuple[Choice, ...]
    """The likeliest tokens, best first; as many as were asked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer: its text without stop strings and outer white space, and how it came about."""

    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    """Length of the prompt with every picture expanded to its features."""
    num_new_tokens: int
    timing: Timing
    num_cached_tokens: int = 0
    """Positions of the prompt whose keys and values were remembered from earlier."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each new token, where they were asked for."""
    token_ids: tuple[int, ...] = ()
    """The new ids, an end-of-sequence id included; empty for engines that give text only."""
