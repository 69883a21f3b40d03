"""Holds how one sample is read: the three spellings, pictures, places, and what is refused."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from llava.data.records import PictureFolder, Record, record_of
from llava.errors import DataError
from tests.data.files import sample

PNG = Path(__file__).parents[1] / "fixtures" / "checkpoints" / "images" / "0.png"
FOLDER = PictureFolder("/pictures", is_limit=True)


def read(raw: object, folder: PictureFolder = FOLDER) -> Record:
    return record_of(raw, source="set", where="set.jsonl line 7", number=7, folder=folder)


def talk(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def test_llava_spelling() -> None:
    record = read(sample(3, image="coco/1.jpg"))
    assert record.id == "s3"
    assert record.images == ("/pictures/coco/1.jpg",)
    assert record.turns == (
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "Answer 3."},
    )
    assert (record.source, record.where, record.system) == ("set", "set.jsonl line 7", "")


def test_sharegpt_spelling() -> None:
    turns = [
        {"from": "system", "value": "Be short."},
        {"from": "user", "value": "Hi"},
        {"from": "assistant", "value": "Hello"},
    ]
    record = read({"conversations": turns})
    assert [turn["from"] for turn in record.turns] == ["human", "gpt"]
    assert record.system == "Be short."
    assert record.id == "set-7"


@pytest.mark.parametrize("url", ["a.png", {"url": "a.png"}])
def test_openai_spelling_keeps_pictures_in_their_places(url: object) -> None:
    content = [
        {"type": "text", "text": "Before"},
        {"type": "image_url", "image_url": url},
        {"type": "text", "text": "between"},
        {"type": "image", "image": "b.png"},
    ]
    record = read(talk(("system", "Be short."), ("user", content), ("assistant", "Yes")))
    assert record.turns[0]["value"] == "Before\n<image>\nbetween\n<image>"
    assert record.images == ("/pictures/a.png", "/pictures/b.png")
    assert record.system == "Be short."


def test_parts_without_a_source_take_the_pictures_beside_the_messages() -> None:
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    record = read(talk(("user", content), ("assistant", "A"), images=["a.png"]))
    assert record.turns[0]["value"] == "<image>\nWhat?"
    assert record.images == ("/pictures/a.png",)


def test_several_pictures_in_several_turns() -> None:
    turns = [
        {"from": "human", "value": "<image> and <image>?"},
        {"from": "gpt", "value": "Two."},
        {"from": "human", "value": "And now?\n<image>"},
        {"from": "gpt", "value": "Three."},
    ]
    record = read({"id": 5, "images": ["a.png", "b.png", "c.png"], "conversations": turns})
    assert record.images == ("/pictures/a.png", "/pictures/b.png", "/pictures/c.png")
    assert record.id == "5"
    assert [turn["value"] for turn in record.turns] == [turn["value"] for turn in turns]


def test_pictures_as_bytes_struct_base64_and_data_uri() -> None:
    data = PNG.read_bytes()
    assert read(sample(0, image=data)).images == (data,)
    assert read(sample(0, image={"bytes": data, "path": "a.png"})).images == (data,)
    assert read(sample(0, image={"bytes": None, "path": "a.png"})).images == ("/pictures/a.png",)
    assert read(sample(0, image=base64.b64encode(data).decode())).images == (data,)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    assert read(sample(0, image=uri)).images == (uri,)
    assert read(sample(0, image="file:///pictures/a%20b.png")).images == ("/pictures/a b.png",)


def test_absent_values_of_a_table_are_no_pictures() -> None:
    record = read({**sample(0), "image": None, "images": [], "messages": None, "video": None})
    assert record.images == ()


def test_conversations_may_be_json_text_in_a_table() -> None:
    record = read({"conversations": '[{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]'})
    assert record.turns[1] == {"from": "gpt", "value": "A"}


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../b.png", "/pictures2/a.png"])
def test_a_named_picture_folder_is_never_left(path: str) -> None:
    with pytest.raises(DataError, match="outside the picture folder /pictures"):
        read(sample(0, image=path))
    assert read(sample(0, image=path), PictureFolder("/pictures", is_limit=False)).images


def test_a_path_inside_the_folder_may_be_absolute_or_roundabout() -> None:
    assert read(sample(0, image="/pictures/a.png")).images == ("/pictures/a.png",)
    assert read(sample(0, image="a/../b.png")).images == ("/pictures/b.png",)
    assert read(sample(0, image="/x/a.png"), PictureFolder("/", is_limit=True)).images == ("/x/a.png",)


TURNS = sample(0)["conversations"]
BROKEN: list[tuple[str, object, str]] = [
    ("no object", ["a"], "of type list"),
    ("no turns", {"id": 1, "text": "x"}, r"no `conversations` \(its keys: id, text\)"),
    ("both spellings", {**sample(0), "messages": TURNS}, "both"),
    ("empty", {"conversations": []}, "`conversations` is empty"),
    ("not a list", {"conversations": {"a": 1}}, "of type dict"),
    ("text that is no JSON", {"conversations": "[{"}, "text and not JSON"),
    ("a turn of the wrong type", {"conversations": ["hi"]}, "turn 1 is of type str"),
    ("an unknown role", {"conversations": [{"from": "humn", "value": "x"}]}, "Did you mean human?"),
    ("no role", {"conversations": [{"value": "x"}]}, "turn 1 is from None"),
    ("no text", {"conversations": [{"from": "human"}]}, "the text of turn 1 is of type NoneType"),
    ("empty parts", talk(("user", [])), "the text of turn 1 is empty"),
    ("an unknown part", talk(("user", [{"type": "audio_url"}])), "a part of type 'audio_url'"),
    ("a part without text", talk(("user", [{"type": "text"}])), "a part of type 'text'"),
    ("system text later", talk(("user", "Q"), ("system", "S"), ("assistant", "A")), "is turn 2"),
    ("only a system text", talk(("system", "S")), "no turns"),
    ("a picture in the system text", talk(("system", [{"type": "image", "image": "a"}])), "has a picture"),
    ("a video", {**sample(0), "video": "a.mp4"}, "has a video"),
    ("two keys of pictures", {**sample(0, image="a"), "images": ["a"]}, "both `image` and `images`"),
    ("an empty name", sample(0, image=""), "name of a picture is ''"),
    ("a number as picture", sample(0, image=5), "given as int"),
    ("an empty struct", sample(0, image={"bytes": None, "path": None}), "given as NoneType"),
    ("broken base64", sample(0, image="iVBORw0KGgo" + "A" * 60 + "!"), "base64"),
    ("a picture without place", {**sample(0), "image": "a.png"}, r"0 <image> for 1 picture"),
    ("a place without picture", talk(("user", "<image>\nQ"), ("assistant", "A")), "1 <image> for 0 pict"),
    ("one place for two", sample(0, image=["a.png", "b.png"]), "1 <image> for 2 picture"),
    ("a place in an answer", talk(("user", "Q"), ("assistant", "<image>"), image="a"), "an answer holds"),
    (
        "pictures twice",
        talk(("user", [{"type": "image", "image": "a"}]), ("assistant", "A"), image="a"),
        "both in the messages and beside them",
    ),
]


@pytest.mark.parametrize(("raw", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_breaks_the_format_is_an_error_that_says_where(raw: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(raw)
    assert caught.value.where == "set.jsonl line 7"
    assert str(caught.value).startswith("set.jsonl line 7: ")
