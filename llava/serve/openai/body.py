"""The body of a chat completion: which fields there are, which of them are refused, and the numbers' bounds.

A field that is not known is passed over, as other servers do; one that would change the answer if it were
known is refused, so that nobody gets another answer than they asked for. Format: OpenAI's chat completions;
`top_k`, `repetition_penalty` and `num_beams` are ours, the first two as vLLM names them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llava.engine.request import (
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_NEW_TOKENS_LIMIT,
    JsonFormat,
    SamplingParams,
)
from llava.errors import RequestError
from llava.serve.http.errors import invalid_field

if TYPE_CHECKING:
    from llava.engine.protocol import Engine

DEFAULT_TEMPERATURE: Final = 0.2
"""That of the original's demo; models of this family wander off at OpenAI's 1."""
DEFAULT_MAX_TOKENS: Final = 1024
SMALLEST: Final = 0.01
"""Temperature and `top_p` below it take the likeliest token all the same, and are taken for greedy; scores
divided by next to nothing are no numbers any more."""

_NOTHING: Final[tuple[object, ...]] = (None, [], {})
WITHOUT_EFFECT: Final[dict[str, tuple[object, ...]]] = {
    "tools": _NOTHING,
    "functions": _NOTHING,
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "logit_bias": _NOTHING,
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "modalities": (None, [], ["text"]),
    "audio": _NOTHING,
    "web_search_options": (None,),
    "min_p": (None, 0),
    "typical_p": (None, 1),
    "length_penalty": (None, 1),
    "best_of": (None, 1),
    "min_tokens": (None, 0),
    "ignore_eos": (None, False),
    "bad_words": _NOTHING,
    "stop_token_ids": _NOTHING,
    "allowed_token_ids": (None,),
    "chat_template": (None,),
    "chat_template_kwargs": _NOTHING,
    "continue_final_message": (None, False),
    "add_generation_prompt": (None, True),
    "echo": (None, False),
    "prompt_logprobs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "structured_outputs": _NOTHING,
    "grammar": (None, ""),
    "json_schema": (None,),
}
"""Fields that nothing here carries out, and the values by which they ask for nothing."""


_StopText = Annotated[str, Field(max_length=256)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class ImageUrl(_Part):
    """Where a picture is: a data URI, or an address."""

    url: str
    detail: str | None = None
    """OpenAI's choice of resolution; a model of this family has one only."""


class TextPart(_Part):
    """Some text of a message."""

    type: Literal["text"]
    text: str


class ImagePart(_Part):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(_Part):
    """One message of a dialogue."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None
    tool_calls: list[Any] | None = None


class StreamOptions(_Part):
    """What a stream has besides the answer."""

    include_usage: bool | None = None


class AnyText(_Part):
    """An answer of any kind."""

    type: Literal["text"]


class AnyObject(_Part):
    """An answer that is a JSON object."""

    type: Literal["json_object"]


class NamedSchema(_Part):
    """A JSON Schema and what it is called."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class SchemaText(_Part):
    """An answer that fits a JSON Schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


_ResponseFormat = Annotated[AnyText | AnyObject | SchemaText, Field(discriminator="type")]


class ChatBody(BaseModel):
    """The body of `POST /v1/chat/completions`."""

    model_config = ConfigDict(strict=True, extra="allow")

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    model: str | None = None
    """None is the first one served."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS_LIMIT)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS_LIMIT)
    """OpenAI's newer name of `max_tokens`; it wins."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = Field(None, ge=SMALLEST, le=10)
    num_beams: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: _StopText | list[_StopText] | None = None
    seed: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: _ResponseFormat | None = None

    @property
    def num_choices(self) -> int:
        """How many answers are wanted."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self) -> SamplingParams:
        """Return how tokens are chosen; raises ConfigError for a number out of bounds."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs is given without logprobs", remedy="Set logprobs to true.")
        beams = self.num_beams or 1
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        # -1 is what vLLM's clients write for all tokens.
        top_k = 0 if self.top_k in (None, -1) else self.top_k
        temperature = _given(self.temperature, 0.0 if beams > 1 else DEFAULT_TEMPERATURE)
        top_p = _given(self.top_p, 1.0)
        if 0 < temperature < SMALLEST or 0 < top_p < SMALLEST:
            temperature, top_p = 0.0, 1.0
        return SamplingParams(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k or 0,
            repetition_penalty=_given(self.repetition_penalty, 1.0),
            max_new_tokens=self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS,
            stop=tuple(stop),
            seed=self.seed,
            num_beams=beams,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            response_format=self._format(),
        )

    def _format(self) -> JsonFormat | None:
        wanted = self.response_format
        if isinstance(wanted, SchemaText):
            described = wanted.json_schema
            text = json.dumps(described.schema_)
            return JsonFormat(text, name=described.name, is_strict=described.strict)
        return JsonFormat() if isinstance(wanted, AnyObject) else None


def read_body(value: object) -> ChatBody:
    """Check the JSON of a body; raises RequestError naming the field."""
    if not isinstance(value, dict):
        raise RequestError("the body is no JSON object", remedy="Send one with messages.")
    for name, harmless in WITHOUT_EFFECT.items():
        if name in value and not any(value[name] == other for other in harmless):
            raise RequestError(f"{name} cannot be carried out here", remedy="Leave it out.")
    try:
        return ChatBody.model_validate(value)
    except ValidationError as error:
        raise invalid_field(error.errors(include_url=False, include_input=False)) from None


def check_format(sampling: SamplingParams, engine: Engine) -> None:
    """Raise RequestError for a response format that the engine cannot hold answers to."""
    if sampling.response_format is not None and not engine.has_formats:
        raise RequestError(
            "response_format cannot be carried out by this engine",
            remedy="Leave it out and describe the format in the prompt, or serve the model by another one.",
        )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
