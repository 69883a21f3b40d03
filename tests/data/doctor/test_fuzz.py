"""Whatever is done to a data file, the doctor reads it to the end, and its copy has no errors."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from llava.data.doctor.examine import ExamineOptions, examine
from llava.data.doctor.fix import write_fixed
from llava.data.doctor.report import report
from tests.data.doctor.corpus import Builder
from tests.data.doctor.test_examine import checker

VALUES = (
    *("null", "true", "0", "1.5", '""', "[]", "{}", '"x"', '["a"]', "[null]", '{"a": 1}', '"<image>"'),
    *(r'"\ud800"', "1e400", "NaN", r'"\u0000"', '"../x"', '"/etc/passwd"', '"data:image/png;base64,xx"'),
)
KEYS = ("images", "image", "messages", "role", "content", "value", "from", "id", "video", "system")


def changed(value: object, rng: random.Random) -> object:
    """Return a JSON value with one part of it replaced, removed or added."""
    value = json.loads(json.dumps(value))
    places: list[tuple[object, object]] = []

    def walk(node: object) -> None:
        children = (
            node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        )
        for key, child in children:
            places.append((node, key))
            walk(child)

    walk(value)
    node, key = rng.choice(places)
    new = json.loads(rng.choice(VALUES))
    assert isinstance(node, dict | list)
    choice = rng.random()
    if choice < 0.6:
        node[key] = new  # type: ignore[call-overload]
    elif choice < 0.8:
        del node[key]  # type: ignore[arg-type]
    elif isinstance(node, dict):
        node[rng.choice(KEYS)] = new
    else:
        node.insert(0, new)
    return value


@pytest.mark.parametrize("seed", range(4))
def test_a_changed_file_is_examined_and_mended(tmp_path: Path, seed: int) -> None:
    make = Builder(tmp_path / "corpus", 3)
    sound = [make.sound(number) for number in range(8)]
    rng = random.Random(seed)
    options = ExamineOptions(image_folder=str(make.corpus.pictures), num_workers=0)
    tokens = checker()
    data, target = tmp_path / "data.json", tmp_path / "clean.json"
    for number in range(25):
        items = [changed(raw, rng) if rng.random() < 0.7 else raw for raw in rng.sample(sound, 5)]
        content = bytearray(json.dumps(items, indent=rng.choice((None, 1))).encode())
        for _ in range(number % 4):
            content[rng.randrange(len(content))] = rng.choice(b'"{}[],:\\\n\xff\x00a')
        data.write_bytes(content)
        diagnosis = examine(str(data), options, tokens=tokens)
        assert report(diagnosis).encode("utf-8")
        assert json.dumps(diagnosis.to_dict())
        write_fixed(diagnosis, target, tokens=tokens)
        left = [f for f in examine(str(target), options, tokens=tokens).findings if f.code != "file-empty"]
        assert [f for f in left if f.kind.severity == "error"] == [], bytes(content)
