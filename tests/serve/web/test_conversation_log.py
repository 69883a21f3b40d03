"""The log of dialogues in the original's layout."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import threading
from datetime import datetime
from pathlib import Path

import pytest
from PIL import Image

from llava.errors import FileError
from llava.processing.images import load_image
from llava.serve.web.appending import append_line
from llava.serve.web.conversation_log import ConversationLog, state_of
from llava.serve.web.history import Dialogue
from tests.serve.web.test_history import data_url

NOON = datetime(2024, 3, 5, 12, 0, 0).timestamp()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_answer_is_logged_with_its_own_start_and_finish(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 3), "red")
    log = ConversationLog(tmp_path)
    log.chat(
        model="m",
        started_at=NOON,
        finished_at=NOON + 1.5,
        state={"messages": []},
        images=[image],
        ip="192.0.2.1",
    )
    (record,) = lines(tmp_path / "2024-03-05-conv.json")
    name = hashlib.md5(image.tobytes()).hexdigest()
    assert list(record) == ["tstamp", "type", "model", "start", "finish", "state", "images", "ip"]
    assert (record["start"], record["finish"]) == (NOON, NOON + 1.5)
    assert record["images"] == [name]
    with Image.open(tmp_path / "serve_images" / "2024-03-05" / f"{name}.jpg") as saved:
        assert (saved.format, saved.size) == ("JPEG", (4, 3))


def test_a_vote_has_the_keys_of_the_original(tmp_path: Path) -> None:
    ConversationLog(tmp_path, clock=lambda: NOON).vote("upvote", model="m", state={}, ip="x")
    (record,) = lines(tmp_path / "2024-03-05-conv.json")
    assert record == {"tstamp": NOON, "type": "upvote", "model": "m", "state": {}, "ip": "x"}


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "L", "1", "CMYK", "I;16"])
def test_pictures_of_every_mode_are_saved(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (4, 3))
    ConversationLog(tmp_path).chat(model="m", started_at=NOON, finished_at=NOON, state={}, images=[image])
    (path,) = (tmp_path / "serve_images" / "2024-03-05").iterdir()
    assert load_image(path).size == (4, 3)
    assert path.stem == hashlib.md5(image.tobytes()).hexdigest()


def test_transparent_parts_are_white_in_the_saved_picture(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    ConversationLog(tmp_path).chat(model="m", started_at=NOON, finished_at=NOON, state={}, images=[image])
    (path,) = (tmp_path / "serve_images" / "2024-03-05").iterdir()
    assert load_image(path).getpixel((3, 3)) == (255, 255, 255)


def test_the_state_is_that_of_a_conversation(tmp_path: Path) -> None:
    state = state_of(Dialogue().asked("What?", [data_url()]).answered("Red.", "m"), "vicuna_v1")
    assert set(state) == {"system", "roles", "messages", "offset", "sep", "sep2"}
    assert state["messages"] == [["USER", "What?\n<image>"], ["ASSISTANT", "Red."]]
    ConversationLog(tmp_path).chat(model="m", started_at=0, finished_at=0, state=state)
    with_examples = state_of(Dialogue().asked("What?"), "v0")
    assert len(with_examples["messages"]) == with_examples["offset"] + 1


def write_many(path: Path, writer: int) -> None:
    for number in range(50):
        append_line(path, {"writer": writer, "number": number, "text": "x" * 20_000})


def test_lines_of_threads_and_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=write_many, args=(path, 0))
    process.start()
    threads = [threading.Thread(target=write_many, args=(path, writer)) for writer in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    process.join(60)
    assert process.exitcode == 0
    found = {(line["writer"], line["number"]) for line in lines(path)}
    assert found == {(writer, number) for writer in range(3) for number in range(50)}
    assert path.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="can be written"):
        ConversationLog(tmp_path / "file").vote("flag", model="m", state={})
