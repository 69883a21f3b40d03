"""Answers held to a JSON schema: what may come next, what comes of it, and whom it does not concern."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import llava
from llava.demo import embedded_model_path, example_images
from llava.engine.constraining import Constraint, Grammars, check_format
from llava.engine.generation import Generation
from llava.engine.pictures import FeatureCache
from llava.engine.prompt import Prompt
from llava.engine.request import MAX_SCHEMA_CHARACTERS, JsonFormat, Request, SamplingParams
from llava.engine.sampling import TokenSampler
from llava.engine.scheduler import Scheduler, SchedulerOptions
from llava.engine.torch_engine import TorchEngine
from llava.errors import ConfigError, RequestError, TokenizerError
from llava.processing.tokenizer import load_tokenizer
from tests.engine.fakes import END, FakeRunner, Numbers, expected, generation, prompts
from tests.engine.formats import BAD_SCHEMAS, FORMAT, SCHEMA, assert_fits

FIXTURES = Path(__file__).parents[1] / "fixtures"
VOCABULARIES = [
    embedded_model_path(),
    FIXTURES / "checkpoints" / "llava-d-clip-imstartend",
    FIXTURES / "eval" / "labels" / "tokenizer_llama_legacy",
    FIXTURES / "eval" / "labels" / "tokenizer_llama_nonlegacy",
    FIXTURES / "eval" / "labels" / "tokenizer_neox",
]
PICTURE = example_images()[0]
QUESTION = "What colour is it, and how many are there?"


@pytest.fixture(scope="module")
def engine() -> Iterator[TorchEngine]:
    loaded = llava.load(device="cpu", dtype="float32")
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def grammars(engine: TorchEngine) -> Grammars:
    return Grammars(engine.tokenizer, engine.frontend.eos_ids)


def asked(**sampling: Any) -> Request:
    """Return a question about a picture, its answer held to the schema."""
    params = SamplingParams(**{"response_format": FORMAT, "max_new_tokens": 80, **sampling})
    return Request.of_question(QUESTION, [PICTURE], params)


def bytes_of(piece: str) -> bytes:
    """Return what a piece of a sentencepiece vocabulary stands for."""
    if len(piece) == 6 and piece.startswith("<0x"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


def test_ids_that_may_come_next_are_those_that_go_on_with_an_answer(engine: TorchEngine) -> None:
    tokenizer = engine.tokenizer
    words = [b'"red"', b'"reddish"', '"ros\u00e9"'.encode()]
    wanted = JsonFormat(json.dumps({"enum": [word.decode()[1:-1] for word in words]}))
    grammars = Grammars(tokenizer, engine.frontend.eos_ids)
    eos = tokenizer.eos_token_id
    special = set(tokenizer.all_special_ids)
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    for seed in range(8):
        rng, written = random.Random(seed), b""
        constraint = grammars.constraint(wanted)
        while True:
            rest = [word[len(written) :] for word in words if word.startswith(written)]
            right = {
                index
                for index, piece in enumerate(pieces)
                if index not in special and any(part.startswith(bytes_of(piece)) for part in rest)
            } | ({eos} if b"" in rest else set())
            allowed = constraint.allowed(len(tokenizer) + 3).nonzero().flatten().tolist()
            assert allowed
            assert set(allowed) <= right
            if len({part[:1] for part in rest}) > 1:
                # Where there is one way to go on, it is written as the tokenizer would.
                assert set(allowed) == right
            token = rng.choice(allowed)
            if token == eos:
                break
            written += bytes_of(pieces[token])
            constraint.advance(token)
        assert written in words


@pytest.mark.parametrize("folder", VOCABULARIES, ids=lambda folder: folder.name)
def test_any_choice_that_is_allowed_is_read_back_as_an_answer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    eos = tokenizer.eos_token_id
    grammars = Grammars(tokenizer, frozenset({eos}))
    for seed in range(20):
        rng = random.Random(seed)
        ids: list[int] = []
        constraint = grammars.constraint(FORMAT)
        while not ids or ids[-1] != eos:
            ids.append(rng.choice(constraint.allowed(len(tokenizer)).nonzero().flatten().tolist()))
            constraint.advance(ids[-1])
            assert len(ids) < 400
        assert_fits(tokenizer.decode(ids, skip_special_tokens=True))


def test_a_greedy_answer_fits_and_ends_by_itself(engine: TorchEngine) -> None:
    free = engine.ask(QUESTION, [PICTURE])
    answer = engine.generate([asked()])[0]
    assert_fits(answer.text)
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] in engine.frontend.eos_ids
    assert answer.text != free
    assert engine.ask(QUESTION, [PICTURE], response_format=FORMAT) == answer.text


def test_hot_answers_fit_with_every_seed(engine: TorchEngine) -> None:
    requests = [asked(temperature=2.0, seed=seed) for seed in range(50)]
    answers = engine.generate(requests, batch_size=16)
    for answer in answers:
        assert answer.finish_reason == "stop"
        assert_fits(answer.text)
    assert len({answer.text for answer in answers}) > 20


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0, "top_k": 1, "seed": 1},
        {"temperature": 1.0, "top_p": 0.01, "seed": 1},
        {"repetition_penalty": 10.0},
        {"repetition_penalty": 0.01, "temperature": 2.0, "seed": 1},
        {"logprobs": 2},
    ],
    ids=str,
)
def test_filters_choose_among_what_is_allowed(engine: TorchEngine, sampling: dict[str, Any]) -> None:
    answer = engine.generate([asked(**sampling)])[0]
    assert_fits(answer.text)
    assert answer.finish_reason == "stop"
    if "logprobs" in sampling:
        assert answer.logprobs is not None
        assert len(answer.logprobs) == answer.num_new_tokens


def test_any_object_is_one(engine: TorchEngine) -> None:
    wanted = JsonFormat()
    answer = engine.generate([asked(response_format=wanted, max_new_tokens=12)])[0]
    assert answer.text.startswith("{")
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.text), dict)


def test_an_answer_that_is_cut_short_says_so(engine: TorchEngine) -> None:
    whole = engine.generate([asked()])[0]
    cut = engine.generate([asked(max_new_tokens=5)])[0]
    assert (cut.finish_reason, cut.num_new_tokens) == ("length", 5)
    assert whole.text.startswith(cut.text)
    stopped = engine.generate([asked(stop=("count",))])[0]
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.text[: whole.text.index("count")].strip()


def test_others_in_the_batch_answer_as_without_it(engine: TorchEngine) -> None:
    drawn: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 3}]
    free = [
        Request.of_question(question, [picture], SamplingParams(max_new_tokens=24, **sampling))
        for question in ("How many objects are there?", "Describe the picture.")
        for picture in example_images()[:3]
        for sampling in drawn
    ]
    alone = [answer.text for answer in engine.generate(free)]
    mixed = [request for one in free for request in (asked(temperature=2.0, seed=5), one)]
    answers = engine.generate(mixed, batch_size=16)
    assert [answer.text for answer in answers[1::2]] == alone
    for answer in answers[::2]:
        assert_fits(answer.text)


@pytest.mark.parametrize("schema", BAD_SCHEMAS, ids=str)
def test_a_schema_that_cannot_be_held_is_refused_at_once(engine: TorchEngine, schema: dict[str, Any]) -> None:
    wanted = JsonFormat.of_schema(schema)
    num_failed = engine.statistics().num_failed
    with pytest.raises(RequestError, match="cannot be held to this JSON schema: ") as caught:
        engine.submit(asked(response_format=wanted))
    assert len(str(caught.value)) < 400
    assert engine.statistics().num_failed == num_failed
    with pytest.raises(RequestError):
        check_format(wanted)
    assert_fits(engine.generate([asked()])[0].text)


@pytest.mark.parametrize("schema", ["", "{", "[]", "5", "[" * 5000, f'"{"x" * MAX_SCHEMA_CHARACTERS}"'])
def test_a_schema_is_a_json_object_of_bounded_length(schema: str) -> None:
    with pytest.raises(ConfigError, match="JSON schema"):
        JsonFormat(schema)


def test_beams_are_held_to_nothing() -> None:
    with pytest.raises(ConfigError, match="response format"):
        SamplingParams(num_beams=2, response_format=FORMAT)


def test_only_a_format_that_is_there_is_among_the_settings() -> None:
    assert "response_format" not in SamplingParams().to_dict()
    recorded = SamplingParams(response_format=FORMAT).to_dict()["response_format"]
    assert isinstance(recorded, dict)
    assert json.loads(recorded["schema"]) == SCHEMA


@pytest.mark.parametrize("eos_ids", [frozenset(), frozenset({10**6})])
def test_a_vocabulary_without_an_end_is_refused(engine: TorchEngine, eos_ids: frozenset[int]) -> None:
    with pytest.raises(TokenizerError, match="nothing that ends an answer"):
        Grammars(engine.tokenizer, eos_ids).constraint(FORMAT)


def test_a_tokenizer_that_is_not_a_fast_one_is_refused() -> None:
    class Slow:
        def __len__(self) -> int:
            return 10

    with pytest.raises(TokenizerError, match="held to a format"):
        Grammars(Slow(), frozenset({1})).constraint(FORMAT)


def test_ids_outside_the_vocabulary_never_come(grammars: Grammars) -> None:
    constraint = grammars.constraint(FORMAT)
    logits = torch.zeros(5000)
    logits[4999] = 100.0
    sampler = TokenSampler(SamplingParams(), torch.tensor([1]), constraint)
    assert not sampler.is_plain_argmax
    assert sampler.choose(logits) < 1024


def test_a_grammar_that_gives_up_ends_its_own_answer_only(engine: TorchEngine) -> None:
    # So many optional properties are too many to keep in sight, which is seen when the first of them is due.
    many = JsonFormat(json.dumps({"type": "object", "properties": {f"p{n}": {} for n in range(700)}}))
    other = engine.submit(asked())
    stream = engine.submit(asked(response_format=many))
    with pytest.raises(RequestError, match="cannot be held"):
        list(stream)
    list(other)
    assert_fits(other.answer.text)


class Broken(Constraint):
    """Gives up after some tokens."""

    def __init__(self, num_tokens: int) -> None:
        self._left = num_tokens

    def allowed(self, num_ids: int) -> torch.Tensor:
        if not self._left:
            raise RequestError("it gave up")
        self._left -= 1
        return torch.ones(num_ids, dtype=torch.bool)

    def advance(self, token: int) -> None:
        assert token != END


def test_what_a_constraint_raises_is_told_to_its_own_reader() -> None:
    runner = FakeRunner()
    schedule = Scheduler(runner, FeatureCache(runner.encode_images), SchedulerOptions(prefix_bytes=0))
    first, second = prompts(2, 5)
    free = generation(first, 6)
    held = Generation(
        Prompt.of(second, (), 1),
        SamplingParams(max_new_tokens=6),
        tokenizer=Numbers(),
        stop=(),
        eos_ids=frozenset({END}),
        max_new_tokens=6,
        start=0.0,
        constraint=Broken(2),
    )
    for one in (free, held):
        schedule.add(one)
    while schedule.has_work:
        schedule.step()
    assert isinstance(held.error, RequestError)
    assert held.token_ids == expected(second, 2)
    assert free.token_ids == expected(first, 6)
    assert runner.num_bytes == 0
    assert schedule.statistics().num_failed == 1
