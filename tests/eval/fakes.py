"""An engine without a model for evaluation: it answers with what it was asked and the picture's width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from llava.engine.protocol import OnAnswer
from llava.engine.request import Answer, Request, Timing
from llava.errors import ContextLengthError
from llava.eval.answering import Asking, OnBlockOutcome, answer_blocks
from llava.eval.questions import Question
from llava.processing.images import load_image

TOO_LONG = "a very long question"


def answer_of(text: str) -> Answer:
    return Answer(text, "stop", 7, 3, Timing(first_token_s=0.1, total_s=0.2))


class EchoEngine:
    """Calls `before(number)` before the answer of that number, from 0."""

    def __init__(self, before: Callable[[int], None] | None = None) -> None:
        self._before = before
        self.asked: list[str] = []
        self.requests: list[Request] = []

    def generate(
        self, requests: Sequence[Request], *, batch_size: int = 8, on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        assert batch_size > 0
        answers = []
        for index, request in enumerate(requests):
            widths = [load_image(image).width for image in request.images]
            text = "".join(item for item in request.turns[-1].content if isinstance(item, str)).strip()
            if TOO_LONG in text:
                raise ContextLengthError("the prompt has 9 tokens, the model's context 8")
            if self._before is not None:
                self._before(len(self.asked))
            self.asked.append(text)
            self.requests.append(request)
            answers.append(answer_of(f"{text} {widths} {request.sampling.seed}"))
            if on_answer is not None:
                on_answer(index, answers[-1])
        return answers


class EchoAnswerer:
    """The engine as the answering part has it."""

    def __init__(self, engine: EchoEngine | None = None, **settings: object) -> None:
        self.engine = engine or EchoEngine()
        own = {"model": "echo", "template": "vicuna_v1", "image": {"aspect": "pad"}}
        self.settings: Mapping[str, object] = own | settings

    def answer_all(
        self, blocks: Sequence[Sequence[Question]], asking: Asking, on_outcome: OnBlockOutcome
    ) -> None:
        answer_blocks(self.engine, blocks, asking, on_outcome)  # type: ignore[arg-type]

    def close(self) -> None:
        """Nothing is held."""


def make_pictures(folder: Path, num_pictures: int) -> list[str]:
    """Write pictures that differ in width, and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.png" for number in range(num_pictures)]
    for number, name in enumerate(names):
        Image.new("RGB", (10 + number, 8), (200, 30, 30)).save(folder / name)
    return names
