"""One answer on its way to a person: streamed as it comes, stopped by Ctrl-C, measured when asked.

Shared by the interactive session, the one-shot question and (without streaming) the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llava.engine.request import Answer, Request
from llava.errors import PromptError

if TYPE_CHECKING:
    from llava.engine.protocol import AnswerStream, OnAnswer
    from llava.templates import ChatTemplate


_CONTROL_CHARACTERS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Engine(Protocol):
    """What a chat needs of an engine."""

    @property
    def template(self) -> ChatTemplate:
        """The prompt template in use."""
        ...

    def submit(self, request: Request) -> AnswerStream:
        """Prepare a request (errors are raised here) and return its stream."""
        ...

    def generate(
        self, requests: Sequence[Request], *, batch_size: int = ..., on_answer: OnAnswer | None = ...
    ) -> list[Answer]:
        """Answer many requests, in order."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What came of a question."""

    answer: Answer | None
    """None when it was interrupted before decoding began."""

    @property
    def text(self) -> str:
        """What was answered, as far as it went."""
        return self.answer.text if self.answer is not None else ""

    @property
    def is_stopped(self) -> bool:
        """Whether Ctrl-C ended the answer."""
        return self.answer is None or self.answer.finish_reason == "cancelled"


def stream_answer(engine: Engine, request: Request, *, write: Callable[[str], None]) -> Outcome:
    """Write an answer piece by piece; Ctrl-C ends the answer, and what was said until then is the outcome."""
    stream: AnswerStream | None = None
    try:
        stream = engine.submit(request)
        has_begun = False
        for piece in stream:
            # The space or line break that models begin with is layout of the prompt, not part of the answer.
            shown = piece if has_begun else piece.lstrip()
            if shown:
                write(shown)
                has_begun = True
    except KeyboardInterrupt:
        if stream is not None:
            stream.cancel()
    return Outcome(stream.answer if stream is not None else None)


def printable(text: str) -> str:
    """Return `text` without the characters that drive a terminal: a model may have learned to write them."""
    return text.translate(_CONTROL_CHARACTERS)


def check_text(text: str, *, where: str = "the question") -> None:
    """Raise PromptError for text that holds halves of characters, as broken input is read by Python."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise PromptError(f"{where} is not valid UTF-8", remedy="Mend its encoding.") from None


def speed_line(answer: Answer) -> str:
    """Return the speed of an answer: sizes, waiting time, rate."""
    timing = answer.timing
    return (
        f"[prompt {answer.num_prompt_tokens} tokens, answer {answer.num_new_tokens} tokens, "
        f"first after {timing.first_token_s:.2f} s, then "
        f"{timing.tokens_per_second(answer.num_new_tokens):.1f} tokens/s]"
    )


def rendered_prompt(engine: Engine, request: Request) -> str:
    """Return the prompt of a request as text, with `<image>` where a picture goes."""
    spans = engine.template.render(request.turns, add_generation_prompt=True)
    return "".join(span.text for span in spans)
