"""The llama.cpp engine on GGUF files of the tiny checkpoints: prompts, features and answers as in torch.

The tiny checkpoints have random weights, so that their choices are close; the embedded model is trained.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import llava
from llava.demo import embedded_model_path
from llava.engine.gguf_facts import read_model
from llava.engine.http_faults import Fault
from llava.engine.llama_cpp import LlamaCppEngine, LlamaCppOptions, read_completion_event
from llava.engine.llama_cpp_prompt import prompt_chunks
from llava.engine.remote import RemoteEngine
from llava.engine.request import JsonFormat, Request, SamplingParams
from llava.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    EngineError,
    ImageLimitError,
    PlaceholderError,
    PromptError,
    RequestError,
    UsageError,
)
from llava.export.gguf import export_gguf
from llava.serve.bench.workload import draw_picture
from llava.templates import PICTURE, Turn
from tests.engine.formats import BAD_SCHEMAS, FORMAT, assert_fits
from tests.engine.ggufs import CHECKPOINTS, IMAGES, write_language_model

pytest.importorskip("xllamacpp")

NAMES = ["llava-a-clip-mlp2x", "llava-d-clip-imstartend"]


@pytest.fixture(scope="module")
def torch_engines() -> dict[str, Any]:
    return {name: llava.load(CHECKPOINTS / name, device="cpu", dtype="float32") for name in NAMES}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LlamaCppEngine]]:
    loaded = {}
    for name in NAMES:
        folder = tmp_path_factory.mktemp(name)
        export_gguf(CHECKPOINTS / name, folder, type="F32")
        loaded[name] = LlamaCppEngine.load(folder, num_threads=1, num_slots=2, context_length=512)
    yield loaded
    for engine in loaded.values():
        engine.close()


@pytest.fixture(scope="module")
def engine(engines: dict[str, LlamaCppEngine]) -> LlamaCppEngine:
    return engines[NAMES[0]]


def ask_server(engine: LlamaCppEngine, path: str, body: dict[str, Any]) -> Any:
    """Ask the engine's own server, which only its key opens."""
    headers = {"Authorization": f"Bearer {engine._endpoint._secret}"}
    with httpx.Client(base_url=engine._endpoint.url, headers=headers, trust_env=False) as client:
        return client.post(path, json=body).json()


@pytest.mark.parametrize("name", NAMES)
def test_prompts_have_our_ids(
    name: str, engines: dict[str, LlamaCppEngine], torch_engines: dict[str, Any]
) -> None:
    rng = random.Random(name)
    pieces = ["a", "the ", "  ", "\n", " dog", "\u00e9", "\u4e2d", "\U0001f916", " <", ">", ".", "USER:", "1"]

    def some_text() -> str:
        return "x" + "".join(rng.choices(pieces, k=5))

    for _ in range(20):
        turns = [Turn("user", (PICTURE, "\n", some_text())), Turn("assistant", (some_text(),))]
        turns.append(Turn("user", (some_text(),)))
        found: list[int] = []
        request = Request(turns=turns, images=IMAGES[:1])
        for index, chunk in enumerate(prompt_chunks(request, engines[name].model_facts)):
            found += [-200] if index else []
            body = {"content": chunk, "add_special": not index, "parse_special": True}
            found += ask_server(engines[name], "/tokenize", body)["tokens"]
        assert found == torch_engines[name].processor.encode(turns)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_and_log_probabilities_are_those_of_torch(
    name: str, engines: dict[str, LlamaCppEngine], torch_engines: dict[str, Any]
) -> None:
    model, processor = torch_engines[name].model, torch_engines[name].processor
    num_compared = 0
    for image in IMAGES:
        for question in ("What is it?", "How many dogs?"):
            request = Request.of_question(question, [image], SamplingParams(max_new_tokens=2, logprobs=3))
            answer = engines[name].generate([request])[0]
            batch = processor(request.turns, images=[image])
            with torch.inference_mode():
                expected = model(**batch).logits[0, -1].log_softmax(-1)
            assert answer.num_prompt_tokens == batch["input_ids"].shape[1]
            assert answer.logprobs is not None
            if len(answer.logprobs) < answer.num_new_tokens:
                continue  # the first token ends inside a character, and llama.cpp tells nothing of it
            for choice in answer.logprobs[0].top:
                assert choice.logprob == pytest.approx(float(expected[choice.token_id]), abs=0.05)
            num_compared += 1
    assert num_compared >= 4


def test_the_embedded_model_answers_alike_with_its_own_tower_and_8_bits(tmp_path: Path) -> None:
    reference = llava.load(device="cpu", dtype="float32")
    path = write_language_model(embedded_model_path(), tmp_path, "Q8_0")
    options = LlamaCppOptions(num_threads=1, context_length=512)
    engine = LlamaCppEngine(read_model(path), options=options, tower=reference.model)
    sampling = SamplingParams(max_new_tokens=24)
    requests = [
        Request.of_question(question, [draw_picture(number)], sampling)
        for number in range(6)
        for question in ("How many objects are there?", "What is in the picture?")
    ]
    try:
        texts = [answer.text for answer in engine.generate(requests)]
    finally:
        engine.close()
    assert texts == [answer.text for answer in reference.generate(requests)]


def test_text_alone_is_answered_as_by_torch(engine: LlamaCppEngine, torch_engines: dict[str, Any]) -> None:
    request = Request(
        prompt="USER: Who are you? ASSISTANT:", sampling=SamplingParams(max_new_tokens=3, logprobs=1)
    )
    answer = engine.generate([request])[0]
    batch = torch_engines[NAMES[0]].processor(request.prompt)
    with torch.inference_mode():
        expected = torch_engines[NAMES[0]].model(**batch).logits[0, -1].log_softmax(-1)
    assert answer.logprobs is not None
    assert answer.logprobs[0].chosen.token_id == int(expected.argmax())
    alone = engine.stream("Who are you?", max_new_tokens=8, logprobs=0)
    list(alone)
    assert alone.answer.logprobs
    assert {token.top for token in alone.answer.logprobs} == {()}


def test_an_answer_is_streamed_counted_and_its_prompt_remembered(engine: LlamaCppEngine) -> None:
    stream = engine.stream("Tell me about it.", IMAGES[:1], max_new_tokens=12)
    pieces = list(stream)
    answer = stream.answer
    assert len(pieces) > 3
    assert "".join(pieces).strip() == answer.text
    assert answer.num_new_tokens <= 12
    again = engine.stream("Tell me about this.", IMAGES[:1], max_new_tokens=2)
    list(again)
    assert again.answer.num_cached_tokens > 16
    assert again.answer.timing.image_s == 0
    assert 0 <= again.answer.timing.queued_s <= again.answer.timing.first_token_s
    assert engine.statistics().num_cached_tokens > 0
    assert engine.statistics().num_cached_images > 0


def test_a_stop_string_a_limit_and_a_seed_do_what_they_say(engine: LlamaCppEngine) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": 24, "top_k": 200}
    whole = engine.stream("Go.", seed=1, **options)
    text = "".join(whole)
    assert whole.answer.finish_reason in ("length", "stop")
    assert engine.ask("Go.", seed=1, **options) == text.strip()
    assert len({engine.ask("Go.", seed=seed, **options) for seed in range(4)}) > 1
    letters = [char for char in text[2:-2] if char.isascii() and char.isalpha()]
    stopped = engine.stream("Go.", seed=1, stop=(letters[0],), **options)
    assert "".join(stopped) == text[: text.index(letters[0])]
    assert stopped.answer.finish_reason == "stop"


def test_answers_are_held_to_a_schema(engine: LlamaCppEngine) -> None:
    held: dict[str, Any] = {"response_format": FORMAT, "max_new_tokens": 300}
    stream = engine.stream("Go.", IMAGES[:1], **held)
    list(stream)
    assert_fits(stream.answer.text)
    assert stream.answer.finish_reason == "stop"
    for seed in range(20):
        assert_fits(engine.ask("Go.", temperature=2.0, seed=seed, **held))
    cut = engine.stream("Go.", response_format=FORMAT, max_new_tokens=3)
    list(cut)
    assert cut.answer.finish_reason == "length"
    assert engine.ask("Go.", response_format=JsonFormat(), max_new_tokens=8).startswith("{")


@pytest.mark.parametrize("schema", BAD_SCHEMAS, ids=str)
def test_a_schema_that_llama_cpp_would_pass_over_is_refused(
    engine: LlamaCppEngine, schema: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match="cannot be held to this JSON schema"):
        engine.submit(
            Request.of_question("Go.", (), SamplingParams(response_format=JsonFormat.of_schema(schema)))
        )


def test_a_cancelled_answer_frees_its_slot(engine: LlamaCppEngine) -> None:
    for _ in range(4):
        stream = engine.stream("Go.", temperature=1.5, seed=2, max_new_tokens=400)
        next(iter(stream))
        stream.cancel()
        assert stream.answer.finish_reason == "cancelled"
    assert engine.ask("Go.", max_new_tokens=2) is not None


def test_many_are_answered_in_order(engine: LlamaCppEngine) -> None:
    requests = [
        Request.of_question(f"Question {n}", IMAGES[n % 4 : n % 4 + 1], SamplingParams(max_new_tokens=2 + n))
        for n in range(6)
    ]
    seen: list[int] = []
    answers = engine.generate(requests, batch_size=4, on_answer=lambda index, _: seen.append(index))
    assert sorted(seen) == list(range(6))
    assert all(answer.num_new_tokens <= 2 + n for n, answer in enumerate(answers))


def test_what_cannot_be_answered_is_refused(engine: LlamaCppEngine) -> None:
    with pytest.raises(PromptError, match=r"'</s>', which llama.cpp would read"):
        engine.ask("What does </s> mean?", IMAGES[:1])
    with pytest.raises(UsageError, match="beam"):
        engine.ask("Go.", num_beams=2)
    with pytest.raises(PlaceholderError):
        engine.submit(Request(prompt="USER: <image> ASSISTANT:"))
    with pytest.raises(ImageLimitError):
        engine.ask("Go.", IMAGES[:1] * 17)
    with pytest.raises(ContextLengthError, match=r"exceeds the available context size.*Shorten"):
        engine.ask("word " * 2000)


def test_nobody_else_is_let_in(engine: LlamaCppEngine) -> None:
    assert engine._endpoint.url.startswith("http://127.0.0.1:")
    answer = httpx.post(engine._endpoint.url + "/completion", json={"prompt": "x"}, trust_env=False)
    assert answer.status_code == 401


def test_without_its_mmproj_a_model_sees_no_pictures_and_a_closed_one_refuses(tmp_path: Path) -> None:
    path = write_language_model(CHECKPOINTS / NAMES[0], tmp_path, "F16")
    engine = LlamaCppEngine.load(path, num_threads=1, context_length=256)
    assert "No mmproj file" in engine.notices[0]
    assert engine.name == "llama.cpp llava-a-clip-mlp2x F16"
    assert engine.template.name == "vicuna_v1"
    with pytest.raises(UsageError, match="without its mmproj"):
        engine.ask("What?", IMAGES[:1])
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.ask("What?")


def test_a_model_that_llama_cpp_refuses_is_an_error(tmp_path: Path) -> None:
    path = write_language_model(CHECKPOINTS / NAMES[0], tmp_path, "F16")
    facts = read_model(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cannot load"):
        LlamaCppEngine(facts, options=LlamaCppOptions(num_threads=1))


@pytest.mark.parametrize("field", ["num_slots", "context_length", "num_threads", "cache_mib"])
def test_options_out_of_bounds_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        LlamaCppOptions(**{field: -2})


def test_events_that_cannot_be_understood_are_errors() -> None:
    for data in ("nonsense", '{"content": 1}', '{"stop": true, "stop_type": "none", "content": ""}'):
        with pytest.raises(Fault, match="cannot be understood"):
            read_completion_event(data)


def test_a_real_endpoint_answers_the_remote_engine(tmp_path: Path) -> None:
    """llama.cpp's own HTTP server with its own picture code, asked as anybody's."""
    import xllamacpp

    files = export_gguf(CHECKPOINTS / NAMES[0], tmp_path, type="F16")
    assert files.projector is not None
    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = str(files.model), str(files.projector)
    params.n_ctx, params.n_parallel, params.verbosity = 1024, 2, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.api_keys = ["a-key"]
    server = xllamacpp.Server(params)
    remote = RemoteEngine.connect(server.listening_address, api_key="a-key")
    try:
        stream = remote.stream("What is it?", IMAGES[:1], max_new_tokens=6, logprobs=1)
        assert "".join(stream).strip() == stream.answer.text
        assert stream.answer.num_prompt_tokens > 16
        assert stream.answer.num_new_tokens <= 6
        texts = [
            answer.text
            for answer in remote.generate(
                [Request.of_question("Go.", IMAGES[:1], SamplingParams(max_new_tokens=4))] * 4, batch_size=2
            )
        ]
        assert len(set(texts)) == 1
        cancelled = remote.stream("Go.", temperature=1.5, seed=1, max_new_tokens=400)
        next(iter(cancelled))
        cancelled.cancel()
        assert cancelled.answer.finish_reason == "cancelled"
    finally:
        remote.close()
        del server
