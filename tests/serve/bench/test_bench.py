"""`llava bench`: what is counted, what is named, and that it measures what it says."""

from __future__ import annotations

import builtins
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import llava
from llava.cli import main
from llava.engine.protocol import Engine, Statistics, read
from llava.engine.request import Answer, Request, Timing
from llava.errors import CheckpointError, ConfigError, ContextLengthError, UsageError
from llava.serve.bench.bandwidth import read_bandwidth
from llava.serve.bench.command import measure
from llava.serve.bench.measuring import Clients, Sample, Spread, summarise
from llava.serve.bench.opening import open_engine
from llava.serve.bench.report import Report, save_plot
from llava.serve.bench.workload import Workload, words_for
from llava.templates import get_template
from tests.engine.endpoints import GOOD, HEAD, raw_server, sse


class SteadyStream:
    """Four tokens, 10 ms to the first and 5 ms from each to the next."""

    def __init__(self, engine: SteadyEngine, num_prompt: int) -> None:
        self._engine = engine
        self._num_prompt = num_prompt

    def __iter__(self) -> Iterator[str]:
        with self._engine.lock:
            self._engine.num_open += 1
            self._engine.most_open = max(self._engine.most_open, self._engine.num_open)
        time.sleep(0.01)
        for index in range(4):
            yield f" {index}"
            time.sleep(0.005)
        with self._engine.lock:
            self._engine.num_open -= 1

    def cancel(self) -> None:
        """Nothing to do."""

    @property
    def answer(self) -> Answer:
        return Answer("0 1 2 3", "length", self._num_prompt, 4, Timing(first_token_s=0.01, total_s=0.025))


class SteadyEngine(Engine):
    """Refuses every request that its counter says; a prompt has 20 tokens and three for each word."""

    name = "steady"
    template = get_template("vicuna_v1")
    weight_bytes: int | None = None

    def __init__(self, refused: frozenset[int] = frozenset()) -> None:
        self.lock = threading.Lock()
        self.num_open = self.most_open = 0
        self.requests: list[Request] = []
        self._refused = refused

    def submit(self, request: Request) -> SteadyStream:
        with self.lock:
            self.requests.append(request)
            number = len(self.requests)
        if number in self._refused:
            raise ContextLengthError("the prompt has 9 tokens and the model's context 8")
        words = str(request.turns[0].content[-1]).split()
        return SteadyStream(self, 20 + 3 * len(words))

    def generate(self, requests: Sequence[Request], **_: Any) -> list[Answer]:
        return [read(self.submit(request)) for request in requests]

    def statistics(self) -> Statistics:
        return Statistics()

    def close(self) -> None:
        """Nothing is held."""


NO_PICTURES = Workload(images="none", num_new_tokens=4)


def test_every_level_has_its_clients_and_the_warm_up_is_not_counted() -> None:
    engine = SteadyEngine()
    report = measure(engine, NO_PICTURES, concurrency=[4], rounds=2)
    assert [(level.concurrency, level.num_requests) for level in report.levels] == [(1, 2), (4, 8)]
    assert len(engine.requests) == (1 + 2) + (4 + 8)
    assert engine.most_open == 4
    alone, four = report.levels
    assert alone.first_token is not None
    assert 0.01 <= alone.first_token.p50_s <= alone.first_token.p95_s
    assert alone.total is not None
    assert alone.total.p50_s >= 0.025
    assert alone.decode_tokens_per_s == pytest.approx(3 / 0.015)
    assert four.tokens_per_s == pytest.approx(4 * four.requests_per_s)


def test_no_request_comes_twice() -> None:
    engine = SteadyEngine()
    measure(engine, NO_PICTURES, concurrency=[2], rounds=3)
    texts = {str(request.turns[0].content) for request in engine.requests}
    assert len(texts) == len(engine.requests)


def test_failures_are_counted_and_named() -> None:
    engine = SteadyEngine(refused=frozenset({3, 4}))
    report = measure(engine, NO_PICTURES, concurrency=[1], rounds=4)
    (level,) = report.levels
    assert (level.num_requests, level.num_failed) == (4, 2)
    assert level.errors == {"[context-length] the prompt has 9 tokens and the model's context 8": 2}
    assert "2 of 4 requests of 1 client(s) failed: [context-length] the prompt" in report.table()
    json.dumps(report.to_dict(), allow_nan=False)


def test_an_engine_that_only_fails_is_no_crash(tmp_path: Path) -> None:
    engine = SteadyEngine(refused=frozenset(range(100)))
    report = measure(engine, NO_PICTURES, concurrency=[2], rounds=1)
    assert report.num_failed == 3
    assert "first token          unknown" in report.table()
    save_plot(report, tmp_path / "empty.png")


def test_other_errors_are_not_swallowed() -> None:
    class Broken(SteadyEngine):
        def submit(self, _: Request) -> SteadyStream:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure(Broken(), NO_PICTURES, concurrency=[2], rounds=1)


def test_prompts_get_the_length_that_is_wanted() -> None:
    report = measure(SteadyEngine(), NO_PICTURES, concurrency=[1], rounds=1, prompt_tokens=500)
    assert abs(report.levels[0].num_prompt_tokens - 500) <= 3
    short = measure(SteadyEngine(), NO_PICTURES, concurrency=[1], rounds=1, prompt_tokens=5)
    assert "the shortest prompt has" in short.notes[0]
    assert words_for(10, without=40, with_words=100, num_words=20) == 0


def test_the_share_of_the_bandwidth_is_bytes_times_rate() -> None:
    engine = SteadyEngine()
    engine.weight_bytes = 10**6
    report = measure(engine, NO_PICTURES, concurrency=[1], rounds=1)
    assert report.bandwidth is not None
    assert report.bandwidth_share == pytest.approx(10**6 * 200 / report.bandwidth)
    assert "of weights a token" in report.table()
    unknown = measure(SteadyEngine(), NO_PICTURES, concurrency=[1], rounds=1)
    assert unknown.bandwidth_share is None
    assert "unknown (the weights are elsewhere)" in unknown.table()


def test_memory_is_read_at_a_speed_of_this_world() -> None:
    assert 2e8 < read_bandwidth(torch.device("cpu")) < 2e12


def test_percentiles_and_rates_are_those_of_the_samples() -> None:
    answer = Answer("x", "length", 10, 1, Timing(first_token_s=1, total_s=1))
    level = summarise([Sample(n / 100, n / 50, answer) for n in range(101)], 3, duration_s=2.0)
    assert level.first_token is not None
    assert level.total is not None
    assert (level.first_token.p50_s, level.first_token.p95_s) == pytest.approx((0.5, 0.95))
    assert (level.total.p50_s, level.total.p95_s) == pytest.approx((1.0, 1.9))
    assert level.requests_per_s == 50.5
    assert level.decode_tokens_per_s is None
    assert Spread.of([]) is None


@pytest.mark.parametrize(("images", "num_pictures"), [("none", 0), ("same", 1), ("distinct", 4)])
def test_pictures_are_shared_as_asked(images: Any, num_pictures: int) -> None:
    workload = Workload(images=images)
    requests = [workload.request(number) for number in range(1, 5)]
    assert len({image.tobytes() for request in requests for image in request.images}) == num_pictures  # type: ignore[union-attr]
    assert len({str(request.turns[0].content[-1]) for request in requests}) == 4


def test_a_workload_out_of_bounds_is_refused() -> None:
    with pytest.raises(ConfigError, match="images"):
        Workload(images="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_new_tokens"):
        Workload(num_new_tokens=0)


def test_the_weights_of_a_token_are_all_but_the_embedding_table_and_the_tower() -> None:
    engine = llava.load()
    model = engine.model
    text = sum(p.numel() for p in model.model.language_model.parameters()) + model.lm_head.weight.numel()
    table = model.get_input_embeddings().weight.numel()
    is_tied = model.lm_head.weight is model.get_input_embeddings().weight
    expected = text - table * (2 if is_tied else 1) + (table if is_tied else 0)
    assert engine.weight_bytes == expected * next(model.parameters()).element_size()


def test_the_command_measures_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--concurrency", "2", "--rounds", "1", "--new-tokens", "4", "--json"]
    assert main([*command, "--output", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "bench.json").read_text())
    assert [level["concurrency"] for level in found["levels"]] == [1, 2]
    assert found["engine"].startswith("torch float32 on cpu")
    assert 0 < found["bandwidth_share"] < 1
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_measures_an_endpoint(capsys: pytest.CaptureFixture[str]) -> None:
    def behave(connection: Any, body: bytes) -> None:
        assert b"data:image/png;base64," in body
        connection.sendall(HEAD + sse(GOOD))

    with raw_server(behave) as server:
        assert main(["bench", server.url, "--concurrency", "3", "--rounds", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"tiny at {server.url}\n")
    assert "unknown (the weights are elsewhere)" in out
    assert server.num_requests == (1 + 2) + (3 + 6)


def test_the_key_of_an_endpoint_comes_from_a_file(tmp_path: Path) -> None:
    def behave(connection: Any, _: bytes) -> None:
        connection.sendall(HEAD + sse(GOOD))

    with raw_server(behave) as server:
        command = ["bench", server.url, "--concurrency", "1", "--rounds", "1", "--images", "none"]
        assert main([*command, "--api-key-file", str(tmp_path / "none")]) == 2
        (tmp_path / "key").write_text("a-key\n")
        assert main([*command, "--api-key-file", str(tmp_path / "key")]) == 0
    assert len(server.heads) == 3
    assert all(b"Authorization: Bearer a-key" in head for head in server.heads)


def test_failed_requests_are_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    def behave(connection: Any, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 400 Bad\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnope")

    with raw_server(behave) as server:
        assert main(["bench", server.url, "--concurrency", "1", "--rounds", "2"]) == 1
    assert "2 of 2 requests of 1 client(s) failed: [remote]" in capsys.readouterr().out


def test_without_matplotlib_there_is_no_plot_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    genuine = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    command = ["bench", "--images", "none", "--concurrency", "1", "--rounds", "1", "--new-tokens", "2"]
    assert main([*command, "--output", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "note: no plot: matplotlib is not installed" in captured.err
    assert "clients requests/s" in captured.out
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_the_command_says_whether_answers_change_with_the_batch_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["bench", "--concurrency", "1", "--rounds", "1", "--new-tokens", "4", "--self-check", "5"]
    assert main(command) == 0
    assert "0 of 5 answers change between batch sizes 1 and 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--concurrency", "0"],
        ["--self-check", "0"],
        ["--rounds", "1000"],
        ["--prompt-tokens", "0"],
        ["--images", "all"],
    ],
)
def test_options_out_of_bounds_are_refused(options: list[str]) -> None:
    assert main(["bench", *options]) == 2


def test_an_engine_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CheckpointError):
        open_engine(None, engine="llama.cpp")
    with pytest.raises(UsageError, match="is for the engine 'remote', not 'torch'"):
        open_engine("http://127.0.0.1:1", engine="torch")


def test_an_interruption_ends_the_answers() -> None:
    class Endless(SteadyStream):
        def __iter__(self) -> Iterator[str]:
            while not self.is_cancelled:
                yield "x"
                time.sleep(0.001)

        is_cancelled = False

        def cancel(self) -> None:
            self.is_cancelled = True

    class Interrupted(SteadyEngine):
        def submit(self, request: Request) -> SteadyStream:
            self.requests.append(request)
            if len(self.requests) == 2:
                raise KeyboardInterrupt
            return Endless(self, 1)

    clients = Clients(Interrupted(), NO_PICTURES.request)
    with pytest.raises(KeyboardInterrupt):
        clients.run(2, 2)


def test_the_report_says_what_one_client_saw() -> None:
    report = measure(SteadyEngine(), NO_PICTURES, concurrency=[1], rounds=1)
    assert isinstance(report, Report)
    assert report.summary.startswith("one client: first token after 1")
    assert "200.0 tokens/s" in report.summary
