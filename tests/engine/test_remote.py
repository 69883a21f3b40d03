"""The remote engine against a scripted endpoint: what is sent, what is made of what comes back."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from llava.engine.remote import RemoteEngine, RemoteOptions
from llava.engine.request import Request, SamplingParams
from llava.errors import (
    ConfigError,
    EngineBusyError,
    EngineError,
    ImageError,
    ImageLimitError,
    PlaceholderError,
    RemoteError,
    UsageError,
)
from llava.templates import PICTURE, Turn
from tests.engine.endpoints import GOOD, MODELS, USAGE, Script, chunk, engine_of, stream_of


def png(image: Image.Image, **options: Any) -> bytes:
    written = io.BytesIO()
    image.save(written, "PNG", **options)
    return written.getvalue()


RED = Image.new("RGB", (8, 6), (200, 30, 30))


def sent_picture(body: dict[str, Any]) -> tuple[str, bytes]:
    """Return media type and bytes of the first picture of a request."""
    parts = body["messages"][0]["content"]
    uri = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    kind, _, data = uri.partition(";base64,")
    return kind, base64.b64decode(data)


def test_an_answer_comes_piece_by_piece_with_its_counts() -> None:
    with engine_of(Script(stream_of(*GOOD))) as engine:
        stream = engine.stream("How many dogs?")
        assert list(stream) == ["Two", " dogs"]
        answer = stream.answer
        statistics = engine.statistics()
    assert (answer.text, answer.finish_reason) == ("Two dogs", "stop")
    assert (answer.num_prompt_tokens, answer.num_new_tokens, answer.num_cached_tokens) == (11, 3, 4)
    assert 0 <= answer.timing.queued_s <= answer.timing.first_token_s <= answer.timing.total_s
    assert (statistics.num_finished, statistics.num_running, statistics.num_waiting) == (1, 0, 0)
    assert (statistics.num_prompt_tokens, statistics.num_new_tokens) == (11, 3)


def test_turns_become_messages_with_parts_in_the_order_of_the_markers() -> None:
    script = Script(stream_of(*GOOD))
    turns = [
        Turn("user", (PICTURE, "\n", "Left of ", PICTURE, "?")),
        Turn("assistant", ("A tree.",)),
        Turn("user", ("And ", "right?")),
    ]
    with engine_of(script) as engine:
        engine.ask(turns, [RED, RED.resize((3, 3))])
    first, answer, last = script.bodies[0]["messages"]
    assert [part["type"] for part in first["content"]] == ["image_url", "text", "image_url", "text"]
    assert [part["text"] for part in first["content"] if part["type"] == "text"] == ["Left of ", "?"]
    assert answer == {"role": "assistant", "content": "A tree."}
    assert last == {"role": "user", "content": "And right?"}


@pytest.mark.parametrize(
    ("source", "is_same"),
    [
        (png(RED), True),
        (png(RED.convert("RGBA")), False),
        (png(RED.convert("L")), False),
    ],
)
def test_a_file_travels_as_it_is_only_where_that_says_no_more_than_its_pixels(
    source: bytes, is_same: bool
) -> None:
    script = Script(stream_of(*GOOD))
    with engine_of(script) as engine:
        engine.ask("What?", [source])
    kind, data = sent_picture(script.bodies[0])
    assert kind == "data:image/png"
    assert (data == source) is is_same
    assert Image.open(io.BytesIO(data)).mode == "RGB"


def test_where_a_photo_was_taken_is_not_told(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    RED.save(tmp_path / "with.jpg", exif=exif)
    RED.save(tmp_path / "without.jpg")
    script = Script(stream_of(*GOOD))
    with engine_of(script) as engine:
        engine.ask("What?", [tmp_path / "with.jpg"])
        engine.ask("What?", [str(tmp_path / "without.jpg")])
    assert sent_picture(script.bodies[0])[0] == "data:image/png"
    assert b"a camera" not in sent_picture(script.bodies[0])[1]
    assert sent_picture(script.bodies[1]) == ("data:image/jpeg", (tmp_path / "without.jpg").read_bytes())


def test_what_cannot_be_asked_is_refused_before_anything_is_sent() -> None:
    script = Script(stream_of(*GOOD))
    place = Turn("user", (PICTURE, "What?"))
    with engine_of(script, max_images=2) as engine:
        with pytest.raises(UsageError, match="rendered prompt"):
            engine.submit(Request(prompt="USER: hello ASSISTANT:"))
        with pytest.raises(UsageError, match="beam search"):
            engine.ask("What?", num_beams=2)
        with pytest.raises(ImageError, match="switched off"):
            engine.ask("What?", ["https://pictures.example/1.png"])
        with pytest.raises(PlaceholderError):
            engine.submit(Request(turns=[place]))
        with pytest.raises(ImageLimitError):
            engine.ask("What?", [RED] * 3)
        assert engine.statistics().num_failed == 0
    assert script.bodies == []


def test_sampling_is_sent_in_the_fields_that_the_server_knows() -> None:
    sampling: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "repetition_penalty": 1.5,
        "seed": 2**40,
        "stop": ("\n",),
        "logprobs": 2,
        "max_new_tokens": 7,
    }
    sent = {}
    for owner in ("vllm", "llamacpp", "somebody"):
        script = Script(stream_of(*GOOD), models={"data": [{"id": "m", "owned_by": owner}]})
        with engine_of(script) as engine:
            engine.ask("What?", **sampling)
        sent[owner] = script.bodies[0]
    common = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "stop": ["\n"], "top_logprobs": 2}
    for body in sent.values():
        assert {name: body[name] for name in common} == common
        assert body["logprobs"] is True
        assert body["stream_options"] == {"include_usage": True}
    assert (sent["vllm"]["top_k"], sent["vllm"]["repetition_penalty"]) == (-1, 1.5)
    assert (sent["llamacpp"]["top_k"], sent["llamacpp"]["repeat_penalty"]) == (0, 1.5)
    assert sent["llamacpp"]["seed"] < 2**32
    assert sent["somebody"]["repetition_penalty"] == 1.5
    assert "top_k" not in sent["somebody"]


def test_further_fields_can_be_added_and_taken_away() -> None:
    script = Script(stream_of(*GOOD))
    extra = {"max_tokens": None, "max_completion_tokens": 9}
    with engine_of(script, extra=extra) as engine:
        engine.ask("What?")
    assert script.bodies[0]["max_completion_tokens"] == 9
    assert "max_tokens" not in script.bodies[0]


def test_log_probabilities_are_read() -> None:
    token = {"token": "Two", "logprob": -0.25, "bytes": [84]}
    found = {"content": [{**token, "id": 9, "top_logprobs": [{**token, "id": 9}, token]}]}
    event = chunk("Two")
    event["choices"][0]["logprobs"] = found
    with engine_of(Script(stream_of(event, chunk(reason="length")))) as engine:
        stream = engine.stream("What?", logprobs=2)
        assert "".join(stream) == "Two"
    assert stream.answer.logprobs is not None
    (only,) = stream.answer.logprobs
    assert only.chosen == (9, "Two", -0.25)
    assert [choice.token_id for choice in only.top] == [9, -1]


def test_a_stop_string_never_leaks_from_a_server_that_ignores_it() -> None:
    events = (chunk("one ST"), chunk("OP two"), chunk(reason="stop"), "[DONE]")
    with engine_of(Script(stream_of(*events))) as engine:
        stream = engine.stream("What?", stop=("STOP",))
        assert "".join(stream) == "one "
    assert stream.answer.finish_reason == "stop"


@pytest.mark.parametrize(
    ("events", "num_new"),
    [
        ((chunk("Two"), chunk(" dogs"), chunk(reason="stop")), 2),
        ((chunk("Two"), {"choices": []}, chunk(" dogs", "stop"), {"usage": None}, "[DONE]"), 2),
        ((chunk("Two"), {}, chunk(" dogs", "stop"), {"usage": {"completion_tokens": "many"}}), 2),
        ((chunk(None), {"choices": [{"delta": None}]}, chunk("Two dogs", "stop"), USAGE), 3),
    ],
)
def test_what_a_server_leaves_out_is_not_missed(events: tuple[object, ...], num_new: int) -> None:
    with engine_of(Script(stream_of(*events))) as engine:
        stream = engine.stream("What?")
        assert "".join(stream) == "Two dogs"
    assert stream.answer.num_new_tokens == num_new


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (stream_of(chunk("Two"), '{"choices": [{"del'), "cannot be understood"),
        (stream_of("[1, 2]"), "cannot be understood"),
        (stream_of({"choices": ["text"]}), "cannot be understood"),
        (stream_of(chunk("Two")), "breaks off in the middle.*without a finish reason"),
        (stream_of("[DONE]"), "without a finish reason"),
        (stream_of(chunk("x"), {"error": {"message": "CUDA is out"}}), "fails in the middle.*CUDA is out"),
        (stream_of(chunk("x", "content_filter")), "reason of its own: content_filter"),
        (httpx.Response(200, html="<html><b>Hello</b></html>"), "text/html where an event stream"),
        (httpx.Response(200, json={"choices": []}), "application/json where an event stream"),
        (httpx.Response(404, json={"detail": "no such model"}), "status 404: no such model. Check the URL"),
        (httpx.Response(307, headers={"location": "http://else.example"}), "status 307.*leads to"),
        (httpx.Response(400, json={"error": {"message": "too\nlong " * 200}}), r"too long .*\.\.\.\. "),
    ],
)
def test_every_failure_is_one_error_that_says_where_and_what(response: httpx.Response, message: str) -> None:
    with engine_of(Script(response)) as engine:
        with pytest.raises(RemoteError, match=message) as caught:
            engine.ask("What?")
        assert "model.example/v1/chat/completions" in str(caught.value)
        assert len(str(caught.value)) < 600
        assert engine.statistics().num_failed == 1


def test_an_error_keeps_the_key_to_itself() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(401, json={"error": request.headers["authorization"]})

    with pytest.raises(RemoteError, match=r"status 401: Bearer \*\*\*") as caught:
        RemoteEngine("http://model.example/v1", api_key="sk-secret", transport=httpx.MockTransport(refuse))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "passing",
    [
        httpx.Response(503, text="loading"),
        httpx.Response(429, headers={"retry-after": "0.01"}),
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("late"),
        httpx.RemoteProtocolError("Server disconnected"),
    ],
)
def test_what_passes_is_tried_again(passing: httpx.Response | Exception) -> None:
    script = Script(passing, passing, stream_of(*GOOD))
    with engine_of(script) as engine:
        assert engine.ask("What?") == "Two dogs"
    assert len(script.bodies) == 3


def test_attempts_are_bounded_in_number_and_time() -> None:
    busy = httpx.Response(429, headers={"retry-after": "3600"}, text="quota")
    for response, options, num_tried in (
        (httpx.Response(503, text="loading"), {"num_retries": 2}, 3),
        (busy, {"retry_total_s": 5.0}, 1),
    ):
        script = Script(response)
        with engine_of(script, **options) as engine, pytest.raises(RemoteError, match=r"loading|quota"):
            engine.ask("What?")
        assert len(script.bodies) == num_tried


def test_the_first_model_that_is_listed_answers_unless_one_is_named() -> None:
    with engine_of(Script(stream_of(*GOOD))) as engine:
        assert engine.name == "tiny at http://model.example/v1"
        assert engine.template.name == "vicuna_v1"
    script = Script(stream_of(*GOOD))
    with engine_of(script, model="adapter") as engine:
        engine.ask("What?")
    assert script.bodies[0]["model"] == "adapter"


def test_an_endpoint_without_a_list_of_models_needs_a_name() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404) if request.method == "GET" else stream_of(*GOOD)

    with engine_of(handler, model="m") as engine:
        assert engine.ask("What?") == "Two dogs"
    with pytest.raises(RemoteError, match="status 404"), engine_of(handler):
        pass


@pytest.mark.parametrize("models", [{"data": []}, {"data": [{}]}, [], "x", {"data": None}])
def test_a_list_of_models_that_is_none_is_an_error(models: object) -> None:
    with pytest.raises(RemoteError, match=r"no model|list of models"), engine_of(Script(models=models)):
        pass


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://x/v1", "http or https"),
        ("http:///v1", "host"),
        ("localhost:8000", "http or https"),
        ("http://x/v1?key=1", "query"),
        ("http://user:secret@x/v1", "password"),
        ("http://x:port/v1", "cannot be read"),
    ],
)
def test_a_url_that_is_none_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RemoteEngine(url)


@pytest.mark.parametrize(
    "given", ["http://h:1", "http://h:1/", "http://h:1/v1/", "http://h:1/v1/chat/completions"]
)
def test_any_address_of_an_api_will_do(given: str) -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, json=MODELS)

    RemoteEngine(given, transport=httpx.MockTransport(handler)).close()
    assert seen == ["http://h:1/v1/models"]


@pytest.mark.parametrize("field", ["max_concurrency", "num_retries", "token_timeout_s", "backoff_s"])
def test_options_out_of_bounds_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        RemoteOptions(**{field: -1})  # type: ignore[arg-type]


def test_a_closed_engine_refuses() -> None:
    with engine_of(Script(stream_of(*GOOD))) as engine:
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.ask("What?")


def test_no_more_than_may_wait_are_taken() -> None:
    request = Request.of_question("What?")
    with (
        engine_of(Script(stream_of(*GOOD)), max_concurrency=1, max_waiting=0) as engine,
        pytest.raises(EngineBusyError),
    ):
        engine.choices(request, 16)


def test_generate_keeps_the_order_and_raises_at_once() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=MODELS)
        if b"bad" in request.content:
            return httpx.Response(400, text="bad question")
        said = request.content.decode().split("question ")[1][0]
        return stream_of(chunk(said), chunk(reason="stop"))

    seen: dict[int, str] = {}
    good = [Request.of_question(f"question {n}", sampling=SamplingParams()) for n in range(9)]
    with engine_of(handler) as engine:
        answers = engine.generate(good, batch_size=3, on_answer=lambda n, a: seen.update({n: a.text}))
        assert [answer.text for answer in answers] == [str(n) for n in range(9)]
        assert seen == {n: str(n) for n in range(9)}
        with pytest.raises(RemoteError, match="bad question"):
            engine.generate([*good[:2], Request.of_question("bad"), *good], batch_size=2)
        assert engine.statistics().num_running == 0
        with pytest.raises(ConfigError, match="batch_size"):
            engine.generate(good, batch_size=0)
