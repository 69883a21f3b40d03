"""Questions and a model in, an answers file out.

    questions -> blocks (those about one picture next to each other) -> worker(s) -> journal -> answers file

With one worker the model is in this process; with several, each is a process with a model of its own that is
given the next block whenever it is through with one (`workers.py`). Only this process writes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tqdm import tqdm

from llava.engine.each import ERRORS_OF_ONE, Outcome, Tally, answer_each, failure_record
from llava.engine.engine import ChatEngine
from llava.engine.model_options import ModelOptions, engine_settings, load_engine
from llava.engine.request import Answer, Request, SamplingParams
from llava.errors import LlavaError
from llava.eval.answer_file import AnswerFile
from llava.eval.options import DEFAULT_BATCH_SIZE
from llava.eval.questions import Question
from llava.processing.images import load_image

if TYPE_CHECKING:
    from llava.engine.protocol import Engine
    from llava.processing.images import ImageSource

BLOCK_QUESTIONS = 64
"""About so many questions are handed out at once; the pictures of one block wait decoded."""
_DECODERS = 4

OnBlockOutcome = Callable[[Question, Outcome], None]


@dataclass(frozen=True)
class Asking:
    """How questions are asked. Can be pickled: workers get it."""

    images: Path
    """Where the questions' pictures are."""
    sampling: SamplingParams
    batch_size: int = DEFAULT_BATCH_SIZE
    """Questions at a time."""
    seed: int = 0
    """Of a run that samples: each question draws with a seed made of it and the question."""
    plain_pictures: bool = False
    """Decode pictures as the original: no orientation, hidden colours of transparent parts, grey clipped."""

    def settings(self) -> dict[str, object]:
        """Return what answers depend on besides the model."""
        seed = None if self.sampling.is_greedy else self.seed
        pictures = {"decoding": "original"} if self.plain_pictures else {}
        return {"sampling": self.sampling.to_dict() | {"seed": seed}, **pictures}

    def request(self, question: Question, pictures: Sequence[ImageSource]) -> Request:
        """Return what the engine is asked."""
        sampling = self.sampling
        if not sampling.is_greedy:
            digest = hashlib.sha256(repr((self.seed, question.key)).encode()).digest()
            sampling = replace(sampling, seed=int.from_bytes(digest[:6]))
        return Request.of_question(question.text, pictures, sampling)


def blocks_of(questions: Sequence[Question], size: int = BLOCK_QUESTIONS) -> list[list[Question]]:
    """Return the questions with those about one picture next to each other, in blocks of about `size`.

    A picture's questions are in one block as far as twice the size reaches.
    """
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.cluster, []).append(question)
    blocks: list[list[Question]] = [[]]
    for group in groups.values():
        for begin in range(0, len(group), size):
            part = group[begin : begin + size]
            if blocks[-1] and len(blocks[-1]) + len(part) > size:
                blocks.append([])
            blocks[-1] += part
    return [block for block in blocks if block]


def chunk(questions: Sequence[Question], num_chunks: int, index: int) -> list[Question]:
    """Return a slice as the original cuts it: ceil(n / num_chunks) each, so the last ones may be empty."""
    size = -(-len(questions) // num_chunks)
    return list(questions[index * size : (index + 1) * size])


def answer_blocks(
    engine: Engine, blocks: Sequence[Sequence[Question]], asking: Asking, on_outcome: OnBlockOutcome
) -> None:
    """Ask the questions block by block; while one is answered, the pictures of the next are decoded."""
    with ThreadPoolExecutor(_DECODERS, thread_name_prefix="pictures") as pool:
        following = iter(blocks)
        opened = _open_pictures(engine, next(following, ()), asking, pool)
        for block in blocks:
            current, opened = opened, _open_pictures(engine, next(following, ()), asking, pool)
            answer_block(engine, block, asking, current, on_outcome)


def answer_block(
    engine: Engine,
    block: Sequence[Question],
    asking: Asking,
    opened: dict[str, Future[ImageSource]],
    on_outcome: OnBlockOutcome,
) -> None:
    """Ask the questions of one block, whose pictures are (being) opened."""
    asked: list[Question] = []
    requests: list[Request] = []
    for question in block:
        try:
            pictures = [] if question.image is None else [opened[question.image].result()]
        except ERRORS_OF_ONE as error:
            on_outcome(question, error)
        else:
            asked.append(question)
            requests.append(asking.request(question, pictures))
    if requests:
        answer_each(
            engine,
            requests,
            batch_size=asking.batch_size,
            on_outcome=lambda index, outcome: on_outcome(asked[index], outcome),
        )


def _open_pictures(
    engine: Engine, block: Sequence[Question], asking: Asking, pool: ThreadPoolExecutor
) -> dict[str, Future[ImageSource]]:
    """Open each picture of a block once. An engine that sends pictures on gets the file as it is."""
    opens = (
        partial(load_image, as_original=asking.plain_pictures) if isinstance(engine, ChatEngine) else _same
    )
    images = dict.fromkeys(question.image for question in block if question.image is not None)
    return {image: pool.submit(opens, source_of(image, asking.images)) for image in images}


def _same(source: ImageSource) -> ImageSource:
    return source


def source_of(image: str, folder: Path) -> ImageSource:
    """Return where a question's picture is: itself for a data URI, else a path below `folder`."""
    return image if image.startswith("data:") else folder / image


def run(answerer: Answerer, output: AnswerFile, questions: Sequence[Question], asking: Asking) -> Tally:
    """Have the questions answered that `output` has no answer to, and write the answers file.

    Shows progress on stderr. Ctrl-C ends it; what was answered is kept, and the tally says so. Raises what
    ends a run: EngineError, a full disk (FileError); what was answered until then is kept as well.
    """
    missing = [question for question in questions if not output.is_answered(question)]
    tally = Tally(num_jobs=len(questions), num_skipped=len(questions) - len(missing))
    if missing:
        output.begin()
    try:
        # Where stderr is a log and no terminal, a line now and then is enough.
        interval_s = 0.2 if sys.stderr.isatty() else 10.0
        with tqdm(
            total=len(questions), initial=tally.num_skipped, unit="answer", mininterval=interval_s
        ) as bar:

            def keep(question: Question, outcome: Outcome) -> None:
                if isinstance(outcome, Answer):
                    output.keep(question, outcome.text)
                else:
                    output.keep_failure(question, failure_record(outcome))
                tally.count(question.id, is_failed=isinstance(outcome, LlavaError))
                bar.update(1)

            answerer.answer_all(blocks_of(missing), asking, keep)
    except KeyboardInterrupt:
        tally.is_interrupted = True
    finally:
        output.close()
    if not tally.is_interrupted:
        output.finish()
    return tally


class Answerer(Protocol):
    """Who answers: a model in this process, or several processes."""

    settings: Mapping[str, object]
    """What answers depend on besides question and sampling."""

    def answer_all(
        self, blocks: Sequence[Sequence[Question]], asking: Asking, on_outcome: OnBlockOutcome
    ) -> None:
        """Have the blocks answered, and each outcome told."""
        ...

    def close(self) -> None:
        """Free what is held."""
        ...


class InProcess:
    """A model in this process."""

    def __init__(self, engine: Engine, settings: Mapping[str, object]) -> None:
        """`settings` as `model_options.engine_settings` gives them."""
        self.engine = engine
        self.settings = settings

    def answer_all(
        self, blocks: Sequence[Sequence[Question]], asking: Asking, on_outcome: OnBlockOutcome
    ) -> None:
        """Have the blocks answered."""
        answer_blocks(self.engine, blocks, asking, on_outcome)

    def close(self) -> None:
        """End the engine."""
        self.engine.close()


def open_answerer(options: ModelOptions, devices: Sequence[str | None] = (None,)) -> Answerer:
    """Load the model, in this process for one device, else in one process for each; raises LlavaErrors."""
    if len(devices) == 1:
        own = options if devices[0] is None else replace(options, device=devices[0])
        engine = load_engine(own)
        return InProcess(engine, engine_settings(engine, own))
    from llava.eval.workers import Workers

    return Workers(options, devices)


class Changed(NamedTuple):
    """A question that is answered otherwise when it is asked alone."""

    question: Question
    before: str
    alone: str


def changed_when_alone(
    answerer: Answerer, output: AnswerFile, questions: Sequence[Question], asking: Asking, num_items: int
) -> list[Changed]:
    """Ask `num_items` answered questions again, one at a time, and return those answered otherwise."""
    answered = [question for question in questions if output.is_answered(question)]
    step = max(1, len(answered) // max(1, num_items))
    changed: list[Changed] = []

    def compare(question: Question, outcome: Outcome) -> None:
        before = output.text(question) or ""
        alone = outcome.text if isinstance(outcome, Answer) else str(outcome)
        if alone != before:
            changed.append(Changed(question, before, alone))

    singles = [[question] for question in answered[::step][:num_items]]
    answerer.answer_all(singles, replace(asking, batch_size=1), compare)
    return changed
