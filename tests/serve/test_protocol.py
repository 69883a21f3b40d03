"""The wire: frames however they are cut, fields with their defaults and bounds, records that travel."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.errors import RequestError
from llava.serve.framing import FrameDecoder
from llava.serve.protocol import (
    ErrorNumber,
    GenerateRequest,
    Registration,
    StreamMessage,
    WorkerStatus,
    affinity_of,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(st.lists(TEXTS, max_size=8), st.data())
def test_frames_come_out_as_they_went_in_wherever_the_stream_is_cut(texts: list[str], data: Any) -> None:
    messages = [StreamMessage(text=text) for text in texts]
    stream = b"".join(message.to_frame() for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    decoder, frames = FrameDecoder(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        frames += decoder.feed(stream[begin:end])
    assert [StreamMessage.from_json(json.loads(frame)) for frame in frames] == messages
    assert decoder.is_between_frames


def test_empty_frames_are_skipped_and_an_incomplete_one_is_noticed() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(b"\0\0{}\0\0{") == [b"{}"]
    assert not decoder.is_between_frames


def test_a_frame_without_end_is_refused() -> None:
    decoder = FrameDecoder(max_bytes=10)
    decoder.feed(b"12345\0123456")
    with pytest.raises(RequestError, match="more than 10 bytes"):
        decoder.feed(b"78901")


def test_a_frame_never_holds_the_byte_that_ends_it() -> None:
    frame = StreamMessage(text="a\0b").to_frame()
    assert frame.count(b"\0") == 1
    assert json.loads(frame[:-1])["text"] == "a\0b"


def test_a_message_of_the_original_is_what_it_always_was() -> None:
    assert StreamMessage(text="p and so on").to_frame() == b'{"text": "p and so on", "error_code": 0}\0'


def test_an_error_keeps_the_originals_fields_and_adds_ours() -> None:
    message = StreamMessage(
        text="Shorten it",
        error_code=1,
        code="context-length",
        cause="Too long",
        docs="docs/errors/x.md",
        request_id="req-1",
    )
    value = message.to_json()
    assert value["text"] == "Shorten it"
    assert value["error_code"] == ErrorNumber.WORKER
    assert StreamMessage.from_json(value) == message


def test_defaults_and_caps_are_the_originals() -> None:
    request = GenerateRequest.from_json({"prompt": "p"})
    assert (request.temperature, request.top_p, request.max_new_tokens) == (1.0, 1.0, 256)
    assert (request.images, request.stop, request.deltas) == ((), (), False)
    assert GenerateRequest.from_json({"prompt": "p", "max_new_tokens": 4096}).max_new_tokens == 1024
    ours = GenerateRequest.from_json({"prompt": "p", "max_new_tokens": 4096, "deltas": True})
    assert ours.max_new_tokens == 4096


def test_what_the_original_ignores_is_ignored() -> None:
    extra = {"max_input_tiles": 12, "org_images": ["x"], "unknown": {"a": [1]}}
    assert GenerateRequest.from_json({"prompt": "p", **extra}) == GenerateRequest(prompt="p")


def test_numbers_may_come_as_text_as_the_original_read_them() -> None:
    assert GenerateRequest.from_json({"prompt": "p", "temperature": "0.5"}).temperature == 0.5


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "prompt is missing"),
        ({"prompt": 5}, "prompt is 5"),
        ({"prompt": "x" * 500_000}, "prompt has 500000 characters"),
        ({"prompt": "p", "temperature": float("nan")}, "temperature"),
        ({"prompt": "p", "temperature": -1}, "temperature is -1"),
        ({"prompt": "p", "temperature": True}, "temperature is True"),
        ({"prompt": "p", "top_p": 1.5}, "top_p is 1.5"),
        ({"prompt": "p", "max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"prompt": "p", "max_new_tokens": 10**300}, "max_new_tokens"),
        ({"prompt": "p", "max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
        ({"prompt": "p", "images": "x"}, "images is a text"),
        ({"prompt": "p", "images": [1]}, "images is a list"),
        ({"prompt": "p", "images": ["x"] * 99}, "images has 99 entries"),
        ({"prompt": "p", "stop": ["x"] * 10_000}, "stop has 10000 entries"),
        ({"prompt": "p", "stop": "x" * 1000}, "an entry of stop has 1000 characters"),
        ({"prompt": "p", "seed": 10**30}, "seed"),
        ({"prompt": "p", "deltas": 1}, "deltas is 1"),
    ],
)
def test_a_field_that_cannot_be_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        GenerateRequest.from_json(fields)


def test_requests_and_registrations_survive_the_wire() -> None:
    request = GenerateRequest(
        prompt="p", model="m", images=("aa", "bb"), stop=("x", "y"), deltas=True, seed=5, top_k=3
    )
    assert GenerateRequest.from_json(json.loads(json.dumps(request.to_json()))) == request
    status = WorkerStatus(("a", "b"), 2.5, 3, {"a": "v1"}, "abc")
    registration = Registration("http://localhost:1", check_heart_beat=True, worker_status=status)
    assert Registration.from_json(json.loads(json.dumps(registration.to_json()))) == registration


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "gopher://localhost:70",
        "http://good\\@bad",
        "http://user:password@host",
        "http://host:1/?x=1",
        "http://host:1/#x",
        "//host",
        "localhost:21002",
        "http://",
        "http://host name",
        "http://h\u00f6st",
        "",
        "http://2130706433:21002",
        "http://0x7f000001:21002",
        "http://0177.0.0.1:21002",
        "http://127.1:21002",
        "http://[::ffff:127.0.0.1]:21002",
        "http://[::1",
        "http://localhost.:21002",
        "http://a..b:21002",
        "http://host:99999",
        "http://host:port",
        "http://:21002",
        "http://0.0.0.0:21002",
        "http://169.254.169.254/latest",
        "http://[fe80::1]:21002",
        "http://224.0.0.1:21002",
    ],
)
def test_an_address_that_two_readers_could_read_differently_is_refused(address: str) -> None:
    with pytest.raises(RequestError, match="not the address of a worker"):
        Registration.from_json({"worker_name": address, "check_heart_beat": True, "worker_status": None})


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost:21002",
        "http://127.0.0.1:21002",
        "http://[::1]:21002",
        "https://gpu-1.my_cluster.internal/llava",
        "http://10.0.0.7:21002",
        "http://WORKER-7:1",
    ],
)
def test_the_address_of_a_worker_is_kept(address: str) -> None:
    registration = Registration.from_json(
        {"worker_name": address + "/", "check_heart_beat": True, "worker_status": None}
    )
    assert registration.worker_name == address


def test_a_conversation_keeps_its_key() -> None:
    first = affinity_of("m", ("picture",), "What is it?")
    assert first == affinity_of("m", ("picture", "another"), "Other words")
    assert first != affinity_of("other", ("picture",), "What is it?")
    assert affinity_of("m", (), "hello") != affinity_of("m", (), "hello you")
