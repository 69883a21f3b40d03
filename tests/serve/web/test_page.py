"""The web page in a real browser: one server, one browser, a tab for each test.

Needs Chromium; without one the tests are skipped, or fail where LLAVA_TEST_BROWSER is "required" (in CI).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llava.demo import example_images
from llava.errors import EngineError
from llava.serve.http.access import Access
from tests.serve.network import WordEngine
from tests.serve.servers import live, wait_until

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATH = next((found for name in BROWSERS if (found := shutil.which(name))), None)
IS_REQUIRED = os.environ.get("LLAVA_TEST_BROWSER") == "required"
HOSTILE = (
    "<img src=x onerror=window.hit=1><script>window.hit=1</script> "
    "![](http://192.0.2.1/beacon.png) [x](javascript:hit)"
)
PICTURE = next(path for path in example_images() if path.stem == "shapes")

pytestmark = [
    pytest.mark.skipif(PATH is None and not IS_REQUIRED, reason="there is no Chromium"),
    # gradio leaves sockets and loops of its own to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def engines() -> dict[str, WordEngine]:
    return {
        "alpha": WordEngine(["Two", " dogs", "."]),
        "beta": WordEngine(["Three", " cats", "."]),
        "hostile": WordEngine([HOSTILE]),
        "slow": WordEngine(["word "] * 400, delay_s=0.05),
        "broken": WordEngine(["Half"]),
    }


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def client(engines: dict[str, WordEngine], state: Path) -> Iterator[httpx.Client]:
    from llava.serve.application import ServeOptions, create_app
    from llava.serve.http.lifecycle import Lifecycle
    from llava.serve.served import ServedModels
    from llava.serve.web.backend import LocalBackend
    from llava.serve.web.mounting import mount_page

    engines["broken"].failure = EngineError("out of memory", remedy="Ask for less.")
    models = ServedModels()
    for name, engine in engines.items():
        models.add(name, engine)
    app = create_app(
        models,
        Lifecycle("ready"),
        ServeOptions(access=Access()),
        mount_page=lambda app, models: mount_page(app, LocalBackend(models), log_folder=state),
    )
    with live(app) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # playwright's own loop would be the one of this thread for all later tests.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=PATH, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """A browser tab that shows the page."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.requests: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.set_default_timeout(8_000)

    def open(self, query: str = "") -> None:
        """Load the page and wait until it takes questions."""
        self.page.goto(self.url + query)
        self.page.wait_for_function("document.querySelector('#model input')?.value")

    def choose(self, model: str, where: str = "model") -> None:
        """Select a model."""
        field = self.page.locator(f"#{where} input")
        field.click()
        self.page.get_by_role("option", name=model, exact=True).first.click()
        assert field.input_value() == model

    def send(self, text: str, *pictures: Path) -> None:
        """Type a question and press Enter."""
        if pictures:
            self.page.set_input_files("#box input[type=file]", [str(path) for path in pictures])
            self.page.wait_for_function(
                f"document.querySelectorAll('#box img, #box .thumbnail-image').length >= {len(pictures)}"
            )
        self.page.fill("#box textarea", text)
        self.page.press("#box textarea", "Enter")

    def wait_for(self, text: str, where: str = "chat") -> None:
        """Wait until a part of the page says something."""
        self.page.wait_for_function(
            "([where, text]) => document.getElementById(where)?.innerText.includes(text)", arg=[where, text]
        )

    def wait_until_done(self) -> None:
        """Wait until no answer runs."""
        for _ in range(2):  # before an answer begins, it looks the same
            self.page.wait_for_function(
                "document.querySelector('#stop').disabled && !document.querySelector('#again').disabled"
            )
            self.page.wait_for_timeout(150)

    def open_settings(self, section: str) -> None:
        """Unfold a part of the settings."""
        self.page.locator("#side button").first.click()
        self.page.get_by_text(section, exact=True).click()

    def text(self, where: str = "chat") -> str:
        """Return what a part of the page says."""
        return str(self.page.inner_text(f"#{where}"))


@contextmanager
def opened(browser: Any, client: httpx.Client, **options: Any) -> Iterator[Tab]:
    context = browser.new_context(**options)
    try:
        yield Tab(context.new_page(), str(client.base_url).rstrip("/") + "/")
    finally:
        context.close()


@pytest.fixture
def tab(browser: Any, client: httpx.Client) -> Iterator[Tab]:
    with opened(browser, client, viewport={"width": 1280, "height": 900}) as tab:
        tab.open("?model=alpha")
        yield tab


def test_a_picture_is_asked_about_and_everything_stays_on_this_server(
    tab: Tab, engines: dict[str, WordEngine]
) -> None:
    assert tab.page.input_value("#model input") == "alpha"
    tab.send("How many dogs?", PICTURE)
    tab.wait_for("Two dogs.")
    tab.wait_until_done()
    request = engines["alpha"].requests[-1]
    assert len(request.images) == 1
    assert request.turns[-1].content[-1] == "How many dogs?"
    assert "tokens" in tab.text("stages")
    tab.open_settings("What the model sees")
    tab.page.wait_for_selector("#seen img")
    assert tab.page.input_value("#prompt textarea").endswith("<image>\nHow many dogs? ASSISTANT:")
    places = {url for url in tab.requests if not url.startswith((tab.url, "data:", "blob:"))}
    assert places == set()


def test_two_pictures_and_a_second_turn_reach_the_model_in_order(
    tab: Tab, engines: dict[str, WordEngine]
) -> None:
    tab.send("Compare.", PICTURE, example_images()[0])
    tab.wait_for("Two dogs.")
    tab.wait_until_done()
    tab.send("And now?")
    tab.page.wait_for_function("document.querySelector('#chat').innerText.split('Two dogs.').length === 3")
    request = engines["alpha"].requests[-1]
    assert [turn.role for turn in request.turns] == ["user", "assistant", "user"]
    assert len(request.images) == 2


def test_an_answer_streams_and_stops_at_once_and_what_there_is_stays(
    tab: Tab, engines: dict[str, WordEngine]
) -> None:
    tab.choose("slow")
    tab.send("Tell me a story.")
    tab.wait_for("word word word")
    tab.page.keyboard.press("Escape")
    tab.wait_until_done()
    count = tab.text().count("word")
    assert 3 <= count < 400
    assert not engines["slow"].streams[-1].push("late")  # the engine was told
    assert "▌" not in tab.text()


def test_regenerate_edit_and_clear(tab: Tab, engines: dict[str, WordEngine]) -> None:
    tab.send("How many?")
    tab.wait_for("Two dogs.")
    tab.wait_until_done()
    num_asked = len(engines["alpha"].requests)
    tab.page.click("#again")
    wait_until(lambda: len(engines["alpha"].requests) == num_asked + 1)
    tab.wait_until_done()
    assert tab.text().count("Two dogs.") == 1
    tab.page.locator("#chat button[aria-label='Edit'], #chat button[title='Edit']").first.click()
    tab.page.locator("#chat textarea").fill("How many < 3?")
    tab.page.locator("#chat button[aria-label='Submit'], #chat button[title='Submit']").first.click()
    wait_until(lambda: len(engines["alpha"].requests) == num_asked + 2)
    assert engines["alpha"].requests[-1].turns[-1].content == ("How many < 3?",)
    tab.wait_until_done()
    tab.page.click("#clear")
    tab.page.wait_for_function("!document.querySelector('#chat').innerText.includes('How many?')")


def test_an_error_is_shown_with_code_and_request_and_is_no_history(
    tab: Tab, engines: dict[str, WordEngine]
) -> None:
    tab.choose("broken")
    tab.send("What?")
    tab.wait_for("error[engine]: out of memory. Ask for less. (docs/errors/engine.md, request req-")
    tab.wait_until_done()
    tab.choose("alpha")
    tab.send("Once more.")
    tab.wait_for("Two dogs.")
    request = engines["alpha"].requests[-1]
    assert "out of memory" not in json.dumps([str(turn) for turn in request.turns])
    assert [turn.role for turn in request.turns] == ["user"]


def test_what_a_model_says_is_only_text(tab: Tab) -> None:
    tab.choose("hostile")
    tab.send("Say something.")
    tab.wait_for("<script>window.hit=1</script>")
    tab.wait_until_done()
    assert tab.page.evaluate("window.hit") is None
    assert not any("192.0.2.1" in url for url in tab.requests)
    assert tab.page.locator("#chat a[href^='javascript']").count() == 0


def test_two_models_answer_blind_until_the_vote_which_is_kept(tab: Tab, state: Path) -> None:
    tab.page.check("#compare input")
    tab.choose("beta", "other")
    tab.page.check("#blind input")
    tab.send("How many?")
    tab.wait_until_done()
    for name in ("alpha", "beta"):
        assert name not in tab.text("chat") + tab.text("chat-2")
    assert {"Two dogs." in tab.text("chat"), "Two dogs." in tab.text("chat-2")} == {True, False}
    tab.page.click("#pair-left")
    tab.wait_for("alpha" if "Two dogs." in tab.text("chat") else "beta")
    vote = json.loads((state / "votes.jsonl").read_text().splitlines()[-1])
    assert (vote["vote"], vote["blind"], {vote["left"], vote["right"]}) == ("left", True, {"alpha", "beta"})
    assert vote[f"{'left' if vote['left'] == 'alpha' else 'right'}_answer"] == "Two dogs."


def test_an_answer_vote_is_taken_once_and_logged_in_the_layout_of_the_original(tab: Tab, state: Path) -> None:
    assert tab.page.is_disabled("#vote-up")
    tab.send("How many dogs are there?", PICTURE)
    tab.wait_for("Two dogs.")
    tab.wait_until_done()
    tab.page.click("#vote-up")
    tab.page.wait_for_function("document.querySelector('#vote-up').disabled")
    assert tab.page.is_disabled("#vote-flag")
    (log,) = state.glob("*-conv.json")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    chats = [record for record in records if record["type"] == "chat"]
    assert any(record["images"] and record["model"] == "alpha" for record in chats)
    assert records[-1]["type"] == "upvote"
    assert list(state.glob("serve_images/*/*.jpg"))


def test_the_dialogue_survives_a_reload_and_is_downloaded_and_uploaded(tab: Tab, tmp_path: Path) -> None:
    tab.send("How many dogs?", PICTURE)
    tab.wait_for("Two dogs.")
    tab.wait_until_done()
    tab.open("?model=alpha")
    tab.wait_for("Two dogs.")
    tab.open_settings("Conversation file")
    with tab.page.expect_download() as download:
        tab.page.click("#download")
    path = tmp_path / "dialogue.json"
    download.value.save_as(path)
    assert [turn["text"] for turn in json.loads(path.read_text())["turns"]] == ["How many dogs?", "Two dogs."]
    path.write_text(path.read_text().replace("Two dogs.", "Five birds."))
    tab.page.set_input_files("[data-testid=Upload-upload-button]", str(path))
    tab.wait_for("Five birds.")


def test_a_phone_in_the_dark_has_everything_within_its_width(browser: Any, client: httpx.Client) -> None:
    with opened(browser, client, viewport={"width": 390, "height": 844}, color_scheme="dark") as tab:
        tab.open("?model=beta")
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
        red, green, blue = tab.page.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
        )
        assert max(red, green, blue) < 80
        tab.send("How many?")
        tab.wait_for("Three cats.")
        place = tab.page.locator("#box").bounding_box()
        assert place is not None
        assert place["y"] + place["height"] <= 844  # one sees where to type


def test_a_seed_is_only_sent_where_one_was_given(tab: Tab, engines: dict[str, WordEngine]) -> None:
    tab.page.locator("#side button").first.click()
    tab.page.uncheck("#greedy input")
    seeds = []
    for seed in ("", "7"):
        tab.page.fill("#seed textarea, #seed input", seed)
        num_asked = len(engines["alpha"].requests)
        tab.send("How many?")
        wait_until(lambda: len(engines["alpha"].requests) > num_asked)  # noqa: B023
        tab.wait_until_done()
        seeds.append(engines["alpha"].requests[-1].sampling.seed)
    assert seeds == [None, 7]


def test_the_page_comes_with_a_policy_and_without_telemetry(client: httpx.Client) -> None:
    response = client.get("/")
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'self'" in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert client.get("/gradio_api/file=/etc/passwd").status_code in (403, 404)
    assert client.get("/gradio_api/vibe-edit").status_code == 404


def test_a_browser_can_read_what_it_kept_before_the_server_was_started_anew(client: httpx.Client) -> None:
    (kept,) = (part for part in client.get("/config").json()["components"] if part["type"] == "browserstate")
    assert (kept["props"]["secret"], kept["props"]["storage_key"]) == ("llava", "llava-dialogue")
