"""OpenAI-compatible servers as workers: llama-server in real processes, the others by what they list."""

from __future__ import annotations

import argparse
import base64
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llava.engine.remote import RemoteEngine
from llava.export.gguf import export_gguf
from llava.serve import model_worker, register_worker, sglang_worker
from llava.serve.controller import create_app as create_controller_app
from llava.serve.dispatch import DispatchOptions
from llava.serve.http.access import Access
from llava.serve.protocol import GenerateRequest
from llava.serve.registry import Registry
from llava.serve.worker import ModelWorker
from llava.templates import PICTURE, Turn, get_template
from tests.engine.endpoints import GOOD, stream_of
from tests.engine.ggufs import CHECKPOINTS, IMAGES
from tests.serve.network import TOKEN, WordEngine, guarded
from tests.serve.servers import live
from tests.serve.test_processes import START_S, Place, free_port, until

LLAMA_SERVER = """\
import sys, time, xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.mmproj.path = sys.argv[1:]
params.n_ctx, params.n_parallel, params.verbosity = 1024, 2, -1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print("listening at", server.listening_address, flush=True)
while True:
    time.sleep(60)
"""
SGLANG = [
    {"id": "/models/vicuna/checkpoint-900/", "owned_by": "sglang"},
    {"id": "org/adapter", "owned_by": "sglang"},
]
OTHER_KEY = Access(keys=("a-key-that-the-controller-does-not-know",))
QUESTION = (Turn("user", (PICTURE, "\nWhat is it?")),)


class OpenAiServer:
    """The OpenAI-compatible API and nothing else."""

    def __init__(self, *models: dict[str, str], key: str | None = None) -> None:
        self._models = models
        self._key = key
        self.bodies: list[dict[str, Any]] = []
        routes = [
            Route("/v1/models", self._list, methods=["GET"]),
            Route("/v1/chat/completions", self._answer, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def _list(self, request: Request) -> Response:
        if self._key is not None and request.headers.get("authorization") != f"Bearer {self._key}":
            return JSONResponse({"error": "Unauthorized"}, status_code=401)
        return JSONResponse({"object": "list", "data": self._models})

    async def _answer(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        response = stream_of(*GOOD)
        return Response(response.content, media_type="text/event-stream")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.close()


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModelWorker]]:
    """What loads a worker as the command would, and hands it over in place of serving it."""
    workers: list[ModelWorker] = []

    def take(args: argparse.Namespace) -> int:
        workers.append(ModelWorker())
        model_worker._load(workers[-1], args)
        return 0

    def load(*words: str) -> ModelWorker:
        assert sglang_worker.main(words) == 0
        return workers[-1]

    monkeypatch.setattr(sglang_worker, "serve", take)
    yield load
    for worker in workers:
        worker.close()


def question_for(model: str, **fields: Any) -> GenerateRequest:
    """Return "What is it?" about a picture, rendered as a client of the original does."""
    spans = get_template("vicuna_v1").render(QUESTION, add_generation_prompt=True)
    picture = base64.b64encode(Path(IMAGES[0]).read_bytes()).decode()
    prompt = "".join(span.text for span in spans)
    return GenerateRequest(prompt, model=model, images=(picture,), stop=("</s>",), **fields)


def address_of(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/")


def test_llama_server_answers_behind_a_controller_through_the_command_that_the_error_names(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp")
    files = export_gguf(CHECKPOINTS / "llava-a-clip-mlp2x", tmp_path / "gguf", type="F16")
    server = place.start("llama-server", "-c", LLAMA_SERVER, str(files.model), str(files.projector))
    _, controller = place.controller()
    endpoint = server.wait_for(r"listening at (\S+)")
    monkeypatch.setenv("LLAVA_TOKEN_FILE", str(place.folder / "token"))
    registration = ["--controller-address", controller, "--worker-name", endpoint]
    assert register_worker.main(registration) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error[registration]: {endpoint} is an OpenAI-compatible server and no worker")
    assert place.workers(controller) == []

    words = shlex.split(said.partition("in front of it: ")[2])
    assert words[:3] == ["python", "-m", "llava.serve.model_worker"]
    worker = place.start("worker", *words[1:], f"--port={free_port()}", "--heart-beat-interval=0.3")
    until(lambda: place.workers(controller), within_s=START_S, why=lambda: worker.said)
    request = question_for("model-F16.gguf", temperature=0, max_new_tokens=6)
    with place.client(controller) as client:
        assert client.models() == ["model-F16.gguf"]
        answer = list(client.stream(request))
    engine = RemoteEngine.connect(endpoint)
    directly = engine.stream("What is it?", IMAGES[:1], max_new_tokens=6, temperature=0.0)
    expected = "".join(directly)
    assert "".join(message.delta or "" for message in answer).strip() == expected.strip() != ""
    assert answer[-1].usage is not None
    assert answer[-1].usage["prompt_tokens"] == directly.answer.num_prompt_tokens > 16
    engine.close()
    worker.signal(signal.SIGTERM)
    assert worker.exit_code(within_s=START_S) == 0
    assert place.workers(controller) == []


def test_the_sglang_worker_is_a_worker_of_the_originals_options(place: Place) -> None:
    server = OpenAiServer(*SGLANG)
    _, controller = place.controller()
    port = free_port()
    with live(server.app) as client:
        worker = place.start(
            "sglang_worker",
            *("-m", "llava.serve.sglang_worker", "--sgl-endpoint", address_of(client)),
            *("--controller-address", controller, "--worker-address", f"http://localhost:{port}"),
            *("--host=localhost", f"--port={port}", "--limit-model-concurrency=5", "--stream-interval=1"),
        )
        worker.wait_for("registered at")
        request = question_for("vicuna_checkpoint-900", temperature=0.2)
        with place.client(controller) as asking:
            answer = "".join(message.delta or "" for message in asking.stream(request))
    assert answer == "Two dogs"
    (body,) = server.bodies
    assert (body["model"], body["stop"], body["temperature"]) == (SGLANG[0]["id"], ["</s>"], 0.2)
    (message,) = body["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert message["content"][1]["text"] == "What is it?"


@pytest.mark.parametrize(
    ("options", "name", "asked_for"),
    [
        ([], "vicuna_checkpoint-900", SGLANG[0]["id"]),
        (["--model-name", "mine"], "mine", SGLANG[0]["id"]),
        (["--model-path", "org/adapter"], "adapter", "org/adapter"),
        (["--endpoint-model", "org/adapter"], "adapter", "org/adapter"),
    ],
)
def test_a_model_is_called_by_the_last_part_of_its_path(
    options: list[str], name: str, asked_for: str, load: Callable[..., ModelWorker]
) -> None:
    server = OpenAiServer(*SGLANG)
    with live(server.app) as client:
        worker = load("--sgl-endpoint", address_of(client), "--template", "llava_llama_2", *options)
        status = worker.status()
        assert status.model_names == (name,)
        assert status.templates == {name: "llava_llama_2"}
        assert worker.queue.engine.ask("Hello", temperature=0.0) == "Two dogs"
    assert server.bodies[0]["model"] == asked_for
    assert server.bodies[0]["repetition_penalty"] == 1


def test_the_endpoint_may_be_the_model_path_as_for_model_worker(load: Callable[..., ModelWorker]) -> None:
    with live(OpenAiServer(*SGLANG).app) as client:
        worker = load("--model-path", f"{address_of(client)}/v1", "--limit-model-concurrency=2")
        assert worker.status().model_names == ("vicuna_checkpoint-900",)
        engine = worker.queue.engine
        assert isinstance(engine, RemoteEngine)
        assert engine._remote_options.max_concurrency == 2


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--model-path liuhaotian/llava-v1.5-7b",
        "--sgl-endpoint 127.0.0.1:30000",
        "--sgl-endpoint http://127.0.0.1:1 --model-path http://127.0.0.1:2",
        "--sgl-endpoint http://127.0.0.1:1 --model-path a --endpoint-model b",
    ],
)
def test_no_server_or_two_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sglang_worker.main(words.split()) == 2
    assert re.match(r"error\[usage\]: .* --sgl-endpoint", capsys.readouterr().err)


@pytest.fixture
def register(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What registers an address at a controller and returns the error."""
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o600)

    def register(address: str, *options: str) -> str:
        app = create_controller_app(Registry(), DispatchOptions(token=TOKEN), transport=None)
        with live(guarded(app)) as client:
            controller = address_of(client)
            words = ["--controller-address", controller, "--worker-name", address, *options]
            assert register_worker.main(words) == 2
        # The controller, which is in this process, logs besides.
        (said,) = re.findall(r"^error\[.*", capsys.readouterr().err, flags=re.MULTILINE)
        return str(said).replace(controller, "CONTROLLER")

    monkeypatch.setenv("LLAVA_TOKEN_FILE", str(token))
    return register


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("vllm", "llava.serve.model_worker --model-path {address}/v1"),
        ("sglang", "llava.serve.sglang_worker --sgl-endpoint {address}"),
    ],
)
def test_an_openai_only_server_is_named_with_the_command_for_it(
    kind: str, command: str, register: Callable[..., str], tmp_path: Path
) -> None:
    with live(OpenAiServer({"id": "llava-hf/llava-1.5-7b-hf", "owned_by": kind}).app) as client:
        address = address_of(client)
        token = str(tmp_path / "token")
        said = register(address, "--token-file", token)
    assert said == (
        f"error[registration]: {address} is an OpenAI-compatible server and no worker ({kind} serves "
        "llava-hf/llava-1.5-7b-hf): it answers /v1/models and not /worker_get_status. Start a worker in "
        f"front of it: python -m {command.format(address=address)} --controller-address CONTROLLER "
        f"--token-file {token}"
    )


def test_a_controller_elsewhere_is_given_this_machines_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "gpu1")
    args = argparse.Namespace(controller_address="http://front:10000", token_file=None)
    server = register_worker._OpenAiServer("vllm", "m")
    error = register_worker._no_worker(args, "http://localhost:8000", server)
    assert error.remedy.endswith(
        "--model-path http://localhost:8000/v1 --controller-address http://front:10000 --host 0.0.0.0 "
        "--worker-address http://gpu1:21002"
    )


def test_one_that_wants_a_key_is_known_by_its_refusal_and_sent_no_key(
    register: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-for-another-server")
    server = OpenAiServer({"id": "m", "owned_by": "vllm"}, key="a-key-for-another-server")
    with live(server.app) as client:
        said = register(address_of(client))
    assert "(it wants an API key)" in said
    assert "Put its key into OPENAI_API_KEY and start a worker in front of it: python -m" in said


def test_what_is_no_openai_server_keeps_the_controllers_error(register: Callable[..., str]) -> None:
    nobody = register(f"http://127.0.0.1:{free_port()}")
    with live(Starlette()) as client:
        something_else = register(address_of(client))
    worker = ModelWorker()
    worker.take(WordEngine(), name="tiny")
    other_key = guarded(model_worker.create_app(worker), access=OTHER_KEY)
    with live(other_key) as client:
        of_another_token = register(address_of(client))
    expected = "error[registration]: The worker does not answer at the address it gives. "
    assert [said[: len(expected)] for said in (nobody, something_else, of_another_token)] == [expected] * 3
    worker.close()
