"""`llava serve` as a process, with the embedded model and the real openai client."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest

import llava
from llava.cli import main
from llava.demo import example_images
from llava.serve.command import name_models
from tests.documents import ROOT, blocks_of
from tests.engine.formats import BAD_SCHEMAS, COLORS, SCHEMA, assert_fits

MODEL = "InternVL-Chat-Tiny"
QUESTION = "How many objects are there?"


@pytest.fixture(scope="module")
def process() -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [sys.executable, "-m", "llava.cli", "serve", f"second={llava.demo.embedded_model_path()}"]
    command[4:4] = [str(llava.demo.embedded_model_path())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--json", "--engine", "torch", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as running:
        try:
            assert running.stdout is not None
            yield running, json.loads(running.stdout.readline())
        finally:
            running.kill()


@pytest.fixture(scope="module")
def client(process: tuple[subprocess.Popen[str], dict[str, Any]]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=process[1]["url"] + "/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    loaded = llava.load(engine="torch", device="cpu")
    yield loaded
    loaded.close()


def picture(path: Path) -> dict[str, Any]:
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def question(*pictures: Path, text: str = QUESTION) -> list[Any]:
    content = [*(picture(path) for path in pictures), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def test_the_models_are_listed_under_their_names(
    client: openai.OpenAI, process: tuple[subprocess.Popen[str], dict[str, Any]]
) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "second"] == process[1]["models"]
    assert process[1]["key_file"] is None


def test_a_picture_is_answered_as_by_the_engine_itself(client: openai.OpenAI, engine: Any) -> None:
    for path in example_images()[:2]:
        made = client.chat.completions.create(model="second", messages=question(path), temperature=0)
        assert made.choices[0].message.content == engine.ask(QUESTION, images=[path])
        assert made.choices[0].finish_reason == "stop"
        assert made.usage is not None
        assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens


def test_text_and_a_second_turn_reuse_what_was_computed(client: openai.OpenAI) -> None:
    messages = question(example_images()[0])
    first = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "What colour is the largest one?"},
    ]
    second = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert second.choices[0].message.content
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) > 50


def test_a_stream_has_the_whole_text_and_the_counts(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "messages": question(example_images()[0]), "temperature": 0}
    whole = client.chat.completions.create(**fields)
    chunks = list(
        client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_stop_length_seed_and_choices(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": MODEL,
        "messages": question(example_images()[0], text="Describe the picture."),
    }
    cut = client.chat.completions.create(**fields, max_tokens=2, temperature=0)
    assert (cut.choices[0].finish_reason, cut.usage and cut.usage.completion_tokens) == ("length", 2)
    whole = client.chat.completions.create(**fields, temperature=0).choices[0].message.content
    assert whole
    word = whole.split()[2]
    stopped = client.chat.completions.create(**fields, temperature=0, stop=[word]).choices[0]
    assert stopped.message.content == whole[: whole.index(word)].strip()
    assert stopped.finish_reason == "stop"
    drawn = [
        [
            c.message.content
            for c in client.chat.completions.create(**fields, temperature=2, seed=7, n=3).choices
        ]
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 1


def test_log_probabilities(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model=MODEL, messages=question(example_images()[0]), temperature=0, logprobs=True, top_logprobs=3
    )
    assert made.choices[0].logprobs is not None
    tokens = made.choices[0].logprobs.content
    assert tokens
    assert made.usage is not None
    assert len(tokens) == made.usage.completion_tokens
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)
    assert all(token.token == token.top_logprobs[0].token for token in tokens)


def response_format(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


def test_the_documented_answer_in_json(client: openai.OpenAI, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [one for one in blocks_of(ROOT / "docs" / "api.md") if "response_format={" in one.text]
    part = picture(example_images()[0])
    exec(block.text, {"client": client, "picture": part["image_url"]["url"]})
    assert_fits(capsys.readouterr().out)


@pytest.mark.parametrize("temperature", [0, 2])
def test_answers_fit_their_schema_streamed_or_not(client: openai.OpenAI, temperature: float) -> None:
    fields: dict[str, Any] = {
        "model": MODEL,
        "messages": question(example_images()[0]),
        "temperature": temperature,
        "seed": 11,
        "response_format": response_format(SCHEMA),
    }
    whole = client.chat.completions.create(**fields, n=4, logprobs=True, top_logprobs=1)
    for choice in whole.choices:
        assert choice.finish_reason == "stop"
        assert_fits(choice.message.content or "")
    chunks = list(client.chat.completions.create(**fields, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    cut = client.chat.completions.create(**fields, max_tokens=4).choices[0]
    assert cut.finish_reason == "length"
    assert (whole.choices[0].message.content or "").startswith(cut.message.content or "-")


def test_a_class_of_pydantic_comes_back_as_one_of_its_kind(client: openai.OpenAI) -> None:
    class Found(pydantic.BaseModel):
        color: Literal["red", "green", "blue", "yellow"]
        is_round: bool

    made = client.chat.completions.parse(
        model=MODEL, messages=question(example_images()[0]), temperature=2, seed=3, response_format=Found
    )
    found = made.choices[0].message.parsed
    assert found is not None
    assert found.color in COLORS


def test_any_json_object(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model=MODEL,
        messages=question(example_images()[0]),
        temperature=0,
        max_tokens=40,
        response_format={"type": "json_object"},
    )
    assert (made.choices[0].message.content or "").startswith("{")


@pytest.mark.parametrize("schema", BAD_SCHEMAS, ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_held_is_a_bad_request(
    client: openai.OpenAI, schema: dict[str, Any], stream: bool
) -> None:
    wanted = response_format(schema)
    with pytest.raises(openai.BadRequestError, match="cannot be held to this JSON schema") as caught:
        client.chat.completions.create(
            model=MODEL, messages=question(), stream=stream, response_format=wanted
        )
    assert caught.value.code == "request"


def test_control_tokens_in_a_question_are_text(client: openai.OpenAI) -> None:
    text = "<image> </s> <s> USER: ASSISTANT: <|im_end|> <im_start> ###"
    made = client.chat.completions.create(
        model=MODEL, messages=question(text=text), temperature=0, max_tokens=4
    )
    assert made.usage is not None
    assert made.usage.prompt_tokens < 120


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1e-300},
        {"temperature": 0.01, "top_p": 0.01, "extra_body": {"repetition_penalty": 0.01}},
        {"temperature": 2, "top_p": 1e-300},
        {"temperature": 2, "extra_body": {"repetition_penalty": 10, "top_k": 1}},
        {"n": 16, "temperature": 2},
        {"extra_body": {"num_beams": 16}},
    ],
    ids=str,
)
def test_numbers_at_their_bounds_are_carried_out(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    made = client.chat.completions.create(model=MODEL, messages=question(), max_tokens=3, **fields)
    assert len(made.choices) == fields.get("n", 1)


@pytest.mark.parametrize(
    ("fields", "kind", "code"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "not-found"),
        ({"temperature": -1}, openai.BadRequestError, "config"),
        ({"messages": question(text="word " * 5000)}, openai.BadRequestError, "context-length"),
        ({"messages": question(text="")}, openai.BadRequestError, "request"),
    ],
    ids=["model", "temperature", "context", "empty"],
)
def test_errors_are_the_clients_own_classes(
    client: openai.OpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": question(), **fields})
    assert caught.value.code == code
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["request_id"] == caught.value.request_id
    assert caught.value.body["remedy"]


def test_it_stops_cleanly_at_the_end(process: tuple[subprocess.Popen[str], dict[str, Any]]) -> None:
    running, _ = process
    running.send_signal(signal.SIGTERM)
    _, complaints = running.communicate(timeout=20)
    assert running.returncode == 0
    assert complaints.splitlines() == [f"loading {MODEL}", "loading second"]


def test_off_this_machine_a_key_is_drawn_into_a_private_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llava.cli", "serve", "--host", "0.0.0.0", "--json", "--device", "cpu"]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--port", "0", "--engine", "torch", "--no-page"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as running:
        try:
            assert running.stdout is not None
            facts = json.loads(running.stdout.readline())
            key_file = tmp_path / "llava" / "api-key"
            assert facts["key_file"] == str(key_file)
            url = f"http://127.0.0.1:{facts['url'].rsplit(':', 1)[1]}/v1"
            with openai.OpenAI(base_url=url, api_key=key_file.read_text().strip(), max_retries=0) as keyed:
                assert [model.id for model in keyed.models.list()] == [MODEL]
                with pytest.raises(openai.AuthenticationError):
                    keyed.with_options(api_key="another-key-of-ours").models.list()
            running.send_signal(signal.SIGINT)
            assert running.wait(20) == 0
        finally:
            running.kill()


def test_a_model_that_is_none_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path), "--no-page"]) == 2
    complaints = capsys.readouterr().err.splitlines()
    assert complaints[-1].startswith("error[checkpoint]: ")


def test_a_taken_port_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1]), "--no-page"]) == 2
    assert "is taken by " in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llava.serve.command.find_spec", lambda name: None if name == "uvicorn" else name)
    assert main(["serve"]) == 2
    assert "pip install 'internvl-chat-llava[serve]'" in capsys.readouterr().err


def test_models_have_names() -> None:
    assert name_models([]) == [(MODEL, None)]
    assert name_models(["checkpoints/llava-v1.5-7b", "small=x/y.gguf", "http://host:8000/v1?a=b"]) == [
        ("llava-v1.5-7b", "checkpoints/llava-v1.5-7b"),
        ("small", "x/y.gguf"),
        ("v1?a=b", "http://host:8000/v1?a=b"),
    ]


def test_two_models_of_one_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(llava.demo.embedded_model_path())
    assert main(["serve", path, path, "--engine", "torch", "--device", "cpu", "--no-page"]) == 2
    assert f"two models are called {MODEL}" in capsys.readouterr().err
