"""The command of the selftest: whom it attacks, what it needs, and what it says."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from llava.cli import main
from llava.serve.application import ServeOptions
from llava.serve.openai.messages import PromptLimits
from llava.serve.openai.pictures import PictureLimits
from llava.serve.selftest.canary import Canary
from llava.serve.selftest.command import as_json, as_table
from llava.serve.selftest.outcome import Outcome, Trial
from llava.serve.selftest.service import leaks_in, parse_reply
from tests.serve.engines import EchoEngine
from tests.serve.selftest.weak import Weak, running
from tests.serve.servers import serving


@pytest.mark.parametrize("option", ["--attack", "--controller"])
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://192.0.2.7:8000", "not on this machine"),
        ("http://example.org:80", "not on this machine"),
        ("http://0.0.0.0:8000", "not on this machine"),
        ("http://localhost.example.org:8000", "not on this machine"),
        ("http://127.0.0.1@example.org:8000", "not on this machine"),
        ("http://example.org@127.0.0.1:8000", "not on this machine"),
        ("http://2130706433:8000", "not on this machine"),
        ("https://127.0.0.1:8000", "no address"),
        ("http://127.0.0.1", "not an address"),
        ("http://127.0.0.1:8000/v1", "not an address"),
        ("http://127.0.0.1:99999", "not an address"),
        ("localhost:8000", "not an address"),
    ],
)
def test_only_ones_own_machine_is_attacked(
    url: str, words: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("x" * 20)
    given = {"--attack": "http://127.0.0.1:9", option: url, "--token-file": str(token)}
    assert main(["selftest", *(word for pair in given.items() for word in pair)]) == 2
    said = capsys.readouterr().err
    assert words.replace("no address", "not an address") in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--only", "A24"], "no attack A24"),
        (["--key-env", "LLAVA_NO_SUCH_VARIABLE"], "LLAVA_NO_SUCH_VARIABLE is not set"),
        (["--key-file", "no-such-file"], "no-such-file"),
        (["--patience-s", "0"], "--patience-s"),
        ([], "lists no models"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert main(["selftest", "--attack", url, *options]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_server_without_key_and_controller_has_attacks_that_do_not_apply(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAVA_TOKEN_FILE", raising=False)
    with serving(EchoEngine()) as client:
        code = main(["selftest", "--attack", str(client.base_url), "--only", "A1,A5,A6,A7,A11"])
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[-1] == "2 pass, 3 n/a"
    assert "no --controller was given" in lines[1]
    assert "the server has no key" in lines[2]


def test_a_server_that_fetches_pictures_fetches_none_from_this_machine(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ServeOptions(prompt=PromptLimits(PictureLimits(allow_urls=True)))
    with serving(EchoEngine(), options) as client:
        code = main(["selftest", "--attack", str(client.base_url), "--only", "A3,A22"])
    assert capsys.readouterr().out.splitlines()[-1] == "2 pass"
    assert code == 0


def test_the_key_may_come_from_a_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_OF_THE_TEST", "some-key")
    with running(Weak) as url:
        code = main(["selftest", "--attack", url, "--key-env", "KEY_OF_THE_TEST", "--only", "A5"])
    # The server takes everybody in, and now there is a key that it should have asked for.
    assert code == 1
    assert "every route without the key" in (said := capsys.readouterr().out)
    assert said.splitlines()[-1] == "1 FAIL"


PASSED = Outcome("A1", "one", (Trial("x", "401", True), Trial("y", "401", True), Trial("z", "403", True)))
FAILED = Outcome("A2", "two", (Trial("x", "401", True), Trial("y\n", "200 \x1b[2J", False)))
ABSENT = Outcome("A3", "three", reason="there is no three")


def test_a_table_has_a_line_for_each_attack_and_says_the_first_failure() -> None:
    assert as_table([PASSED, FAILED, ABSENT]).splitlines() == [
        "    attack  tried  result  seen",
        "A1  one     3      pass    401 (2), 403",
        "A2  two     2      FAIL    1 of 2: y?: 200 ?[2J",
        "A3  three   -      n/a     there is no three",
        "",
        "1 pass, 1 FAIL, 1 n/a",
    ]


def test_json_has_every_trial() -> None:
    passed, failed, absent = json.loads(as_json([PASSED, FAILED, ABSENT]))
    assert passed["trials"][0] == {"what": "x", "seen": "401", "is_ok": True}
    assert [found["verdict"] for found in (passed, failed, absent)] == ["pass", "FAIL", "n/a"]


def test_nothing_tried_is_nothing_stood() -> None:
    assert Outcome("A1", "one").verdict == "FAIL"


def test_a_canary_counts_who_comes_and_sends_them_on() -> None:
    with Canary(redirect_to="http://127.0.0.1:1/") as canary:
        assert canary.num_calls() == 0
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", canary.port)) as caller:
                caller.sendall(b"GET / HTTP/1.1\r\n\r\n")
                reply = parse_reply(caller.recv(4096), 0.0)
        assert (reply.status, reply.headers["location"]) == (302, "http://127.0.0.1:1/")
        assert canary.num_calls() == 2


@pytest.mark.parametrize(
    "text",
    [
        "cannot read /srv/models/x.bin",
        "C:\\models is missing",
        "<Image object at 0x7f12ab34cd>",
        "Traceback (most recent call last)",
        'File "x", line 3',
        "engine.py failed",
        "cannot reach 10.0.0.7",
    ],
)
def test_what_errors_must_not_say_is_noticed(text: str) -> None:
    assert leaks_in(text, "a question")


@pytest.mark.parametrize(
    "text", ["Use /v1/models.", "ask for image/png", "/etc/passwd is none", "2.13.0 is old"]
)
def test_what_was_sent_and_what_is_public_is_no_leak(text: str) -> None:
    assert leaks_in(text, "the file /etc/passwd") == []
