"""The original's command for the page: its options, and answers by way of a controller."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from llava.engine.request import SamplingParams
from llava.errors import LlavaError
from llava.serve import gradio_web_server
from llava.serve.client import AsyncServingClient
from llava.serve.web.asking import Pane, ask, stages_line
from llava.serve.web.backend import ControllerBackend
from llava.serve.web.history import Dialogue
from tests.serve.network import (
    CONTROLLER,
    TOKEN,
    Network,
    WordEngine,
    add_controller,
    add_worker,
    registration,
)
from tests.serve.test_processes import Place, place

__all__ = ["place"]


async def answered(backend: ControllerBackend, panes: list[Pane]) -> None:
    """Ask, and read to the end."""
    async for _ in ask(backend, panes, SamplingParams(), stop=asyncio.Event(), request_id="req-1"):
        pass


def test_a_dialogue_is_answered_by_a_worker_and_its_lack_is_an_error_of_its_pane() -> None:
    async def main() -> None:
        network = Network()
        registry = add_controller(network)
        worker = add_worker(network, 1, engine=(engine := WordEngine()))
        backend = ControllerBackend(AsyncServingClient(CONTROLLER, token=TOKEN, transport=network))
        async with network.client() as http:
            await http.post(f"{CONTROLLER}/register_worker", json=registration(1, worker))
        names = await backend.models()
        assert names == registry.models()
        dialogue = Dialogue().asked("How many? <<image>>")
        good, bad = Pane(names[0], "Model A", dialogue), Pane("missing", "Model B", dialogue)
        await answered(backend, [good, bad])
        assert good.shown.turns[-1].text == "two dogs"
        assert good.shown.turns[-1].model == "Model A"
        assert "answer 2 tokens" in stages_line(good.stages)
        # What a person writes is no picture, whatever it spells.
        assert "How many? image ASSISTANT:" in str(engine.requests[-1])
        assert bad.error.startswith("error[")
        assert "(docs/errors/not-found.md, request req-1)" in bad.error
        assert bad.shown.turns[-1].is_error

    asyncio.run(main())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--share"], "--share would show this page to everybody"),
        (["--concurrency-count", "0"], "--concurrency-count is 0"),
        (["--controller", "http://127.0.0.1:9"], "cannot be reached"),
        (["--model-list-mode", "never"], "invalid choice"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradio_web_server.main(words) == LlavaError.exit_code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_the_page_runs_beside_controller_and_worker_as_the_original_starts_it(place: Place) -> None:
    _, controller = place.controller()
    page = place.start(
        "page", "-m", "llava.serve.gradio_web_server",
        "--controller", controller, "--model-list-mode", "reload", "--port", "0",
    )  # fmt: skip
    address = page.wait_for(r"web page ready at (\S+)")
    response = httpx.get(address + "/", timeout=20)
    assert response.status_code == 200
    assert "LLaVA" in response.text
    assert httpx.get(address + "/", headers={"Host": "evil.example"}).status_code == 403
    page.signal(15)
    assert page.exit_code(within_s=15) == 0
