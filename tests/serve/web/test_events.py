"""What the page's events return, without a browser."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.demo import example_images
from llava.errors import ConfigError, FileError
from llava.serve.protocol import SMALLEST_TOP_P
from llava.serve.served import ServedModels
from llava.serve.web.asking import Pane
from llava.serve.web.backend import LocalBackend
from llava.serve.web.history import Dialogue
from llava.serve.web.recording import Recorder
from tests.serve.network import WordEngine

pytestmark = pytest.mark.filterwarnings("ignore")
CONTROLS = ("words", None, False, False, "Default", True, 0.2, 0.7, 16, None)


class Visitor:
    """As much of a gr.Request as events look at."""

    session_hash = "abc"
    client = None
    query_params: dict[str, str] = {}  # noqa: RUF012


class FullDisk(Recorder):
    def answer(self, *_: object) -> None:
        raise FileError("the log cannot be written")


@pytest.fixture
def models() -> Iterator[ServedModels]:
    models = ServedModels()
    models.add("words", WordEngine())
    yield models
    models.close()


def events_of(models: ServedModels, recorder: Recorder, folder: Path) -> Any:
    """Return the events of a page; gradio is slow to import, and needs to be told things before."""
    from llava.serve.web.mounting import import_gradio

    import_gradio()
    from llava.serve.web.events import Events, PageOptions

    return Events(LocalBackend(models), PageOptions(), folder=folder, recorder=recorder)


def test_an_answer_is_shown_to_its_end_though_the_log_cannot_be_written(
    models: ServedModels, tmp_path: Path
) -> None:
    events = events_of(models, FullDisk(tmp_path / "votes.jsonl"), tmp_path)

    async def send() -> list[Any]:
        said = {"text": "How many?", "files": []}
        return [shown async for shown in events.send(Visitor(), said, None, *CONTROLS)][-1]

    _, _, _, _, kept, *_ = asyncio.run(send())
    assert [turn["text"] for turn in kept["panes"][0]["turns"]] == ["How many?", "two dogs"]


def test_what_another_page_kept_does_not_keep_this_one_from_opening(
    models: ServedModels, tmp_path: Path
) -> None:
    events = events_of(models, Recorder(tmp_path / "votes.jsonl"), tmp_path)
    model, *_ = asyncio.run(events.load({"panes": [{"format": "another"}]}, Visitor()))
    assert model["value"] == "words"


def test_top_p_of_zero_keeps_the_likeliest_word_as_in_the_original(
    models: ServedModels, tmp_path: Path
) -> None:
    events_of(models, Recorder(tmp_path / "votes.jsonl"), tmp_path)
    from llava.serve.web.events import Choice

    sampled = (*CONTROLS[:5], False, 0.8, 0, 16, "3")
    assert Choice.of(sampled).sampling.top_p == SMALLEST_TOP_P
    assert Choice.of(sampled).sampling.seed == 3
    with pytest.raises(ConfigError, match="seed is 'three'"):
        Choice.of((*sampled[:-1], "three"))


@pytest.mark.parametrize(("is_logged", "told"), [(True, "logs dialogues"), (False, "does not")])
def test_the_page_says_whether_dialogues_are_logged(
    is_logged: bool, told: str, models: ServedModels, tmp_path: Path
) -> None:
    events = events_of(models, Recorder(tmp_path / "votes.jsonl"), tmp_path)
    from llava.serve.web.page import Page

    events.options = replace(events.options, is_logged=is_logged)
    title, *_ = (
        part["props"]["value"]
        for part in Page(events).blocks.get_config_file()["components"]
        if part["props"].get("elem_id") == "title"
    )
    assert told in title


def test_what_the_model_sees_is_a_file_that_is_swept(models: ServedModels, tmp_path: Path) -> None:
    events = events_of(models, Recorder(tmp_path / "votes.jsonl"), tmp_path)
    old = tmp_path / "old.png"
    old.touch()
    os.utime(old, (0, 0))
    said = {"text": "", "files": [str(example_images()[0])]}
    (seen,) = asyncio.run(events.preview(said, "words", "Resize"))
    assert Path(seen).parent == tmp_path
    assert Image.open(seen).size == (336, 336)
    assert not old.exists()


@pytest.mark.parametrize(("first_answers", "is_kept"), [(("A", "A"), True), (("A", "B"), False)])
def test_a_pair_keeps_its_dialogue_only_where_both_models_read_the_same(
    first_answers: tuple[str, str], is_kept: bool, tmp_path: Path
) -> None:
    from llava.serve.web.conversation_log import ConversationLog

    panes = [
        Pane(name, name, Dialogue().asked("1").answered(first, "m").asked("2").answered(name, name))
        for name, first in zip(("left", "right"), first_answers, strict=True)
    ]
    recorder = Recorder(tmp_path / "votes.jsonl", ConversationLog(tmp_path))
    recorder.pair_vote("left", panes, {"models": ["left", "right"], "blind": True})
    vote = json.loads((tmp_path / "votes.jsonl").read_text())
    assert ("dialogue" in vote, "left_answer" in vote) == (is_kept, is_kept)
    assert vote["vote"] == "left"
