"""Every kind of fault that a sample can have, planted: code -> a sample that has it and nothing else."""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image

from tests.data.doctor.corpus import (
    Builder,
    Corpus,
    Plant,
    Raw,
    add,
    copy_of,
    encoded,
    picture,
    put,
    renamed,
    sentence,
    turn,
    with_bytes,
    with_turn,
    without,
    write,
)


def text(make: Builder, num_rounds: int = 2) -> Raw:
    return make.sample(has_picture=False, num_rounds=num_rounds)


def _misspelled(make: Builder) -> Raw:
    raw = make.sample()
    turn(raw, 0)["value"] = turn(raw, 0)["value"].replace("<image>", make.rng.choice(("<Image>", "<img>")))
    return raw


def _no_placeholder(make: Builder) -> Raw:
    raw = make.sample()
    turn(raw, 0)["value"] = turn(raw, 0)["value"].replace("<image>\n", "")
    return raw


def _in_other_case(make: Builder) -> Raw:
    name = make.file("png")
    return put(make.sample(), image=name.upper())


def _misnamed(make: Builder) -> Raw:
    return with_bytes(make, f"misnamed{make.rng.getrandbits(32)}.jpg", encoded(picture(make.rng)))


def _bytes(data: bytes) -> Plant:
    return lambda make: with_bytes(make, f"b{make.rng.getrandbits(32)}.png", data)


def _cut(make: Builder) -> Raw:
    data = encoded(picture(make.rng), "JPEG")
    return with_bytes(make, f"cut{make.rng.getrandbits(32)}.jpg", data[: len(data) // 2])


def _broken(make: Builder) -> Raw:
    data = encoded(picture(make.rng))
    return with_bytes(make, f"broken{make.rng.getrandbits(32)}.png", data[:60] + b"\0" * 99 + data[99:])


def _sized(width: int, height: int) -> Plant:
    return lambda make: put(make.sample(), image=make.file("png", picture(make.rng).resize((width, height))))


def _animated(make: Builder) -> Raw:
    frames = [picture(make.rng).convert("P") for _ in range(3)]
    name = f"moving{make.rng.getrandbits(32)}.gif"
    frames[0].save(make.corpus.pictures / name, save_all=True, append_images=frames[1:])
    return put(make.sample(), image=name)


def _flat(make: Builder) -> Raw:
    colour = tuple(make.rng.randrange(256) for _ in range(3))
    return put(make.sample(), image=make.file("png", Image.new("RGB", (64, 48), colour)))


def _escaping(make: Builder) -> Raw:
    picture(make.rng).save(make.corpus.folder / "outside.png")
    return put(make.sample(), image="../outside.png")


def _again(make: Builder) -> Raw:
    first = make.earlier.pop()
    return put(first, id=f"again{make.rng.getrandbits(32)}")


def _conflict(make: Builder) -> Raw:
    first = json.loads(json.dumps(make.earlier.pop()))
    turn(first, -1)["value"] = f"No, it is {sentence(make.rng)}."
    return put(first, id=f"other{make.rng.getrandbits(32)}")


def _copied(make: Builder, quality: int | None) -> Raw:
    first = make.earlier.pop()
    suffix = Path(first["image"]).suffix if quality is None else ".jpg"
    name = copy_of(make, first, f"copy{make.rng.getrandbits(32)}{suffix}", quality=quality)
    return put(make.sample(), image=name)


def _of_benchmark(make: Builder) -> Raw:
    raw = make.sample()
    image = Image.open(make.corpus.pictures / raw["image"]).convert("RGB")
    image.resize((image.width * 2, image.height * 2)).save(
        make.corpus.benchmark / f"{make.rng.getrandbits(32)}.jpg", quality=60
    )
    return raw


def _long(make: Builder, place: int) -> Raw:
    return add(text(make), place, " " + " ".join(sentence(make.rng, 12) for _ in range(200)))


def _dump(raw: Raw, old: str, new: str) -> str:
    return json.dumps(raw).replace(old, new, 1)


SAMPLES: dict[str, Plant] = {
    "record-type": lambda _: json.dumps(["a", "list"]),
    "id-missing": lambda make: without(make.sample(), "id"),
    "id-type": lambda make: put(make.sample(), id={"a": 1}),
    "id-duplicate": lambda make: put(make.sample(), id=make.earlier[0]["id"]),
    "conversations-missing": lambda make: without(text(make), "conversations"),
    "conversations-type": lambda make: put(text(make), conversations={"from": "human"}),
    "conversations-empty": lambda make: put(text(make), conversations=[]),
    "key-unknown": lambda make: put(make.sample(), **{f"extra{make.rng.getrandbits(32)}": 1}),
    "key-misspelled": lambda make: renamed(make.sample(), "image", make.rng.choice(("imge", "Image"))),
    "turn-type": lambda make: with_turn(text(make), 1, "just text"),
    "role-missing": lambda make: with_turn(text(make), 1, {"value": "An answer."}),
    "role-unknown": lambda make: with_turn(text(make), 1, {"from": "robot", "value": "An answer."}),
    "roles-not-alternating": lambda make: with_turn(text(make), 2, {"from": "gpt", "value": "And more."}),
    "starts-with-answer": lambda make: put(text(make), conversations=text(make)["conversations"][1:]),
    "ends-with-question": lambda make: put(text(make), conversations=text(make)["conversations"][:-1]),
    "answer-none": lambda make: put(text(make), conversations=text(make)["conversations"][:1]),
    "value-missing": lambda make: with_turn(text(make), 1, {"from": "gpt"}),
    "value-type": lambda make: with_turn(text(make), 1, {"from": "gpt", "value": 42}),
    "answer-empty": lambda make: with_turn(text(make), 3, {"from": "gpt", "value": ""}),
    "answer-blank": lambda make: with_turn(text(make), 3, {"from": "gpt", "value": " \n"}),
    "question-empty": lambda make: with_turn(text(make), 2, {"from": "human", "value": ""}),
    "question-blank": lambda make: with_turn(text(make), 2, {"from": "human", "value": "  "}),
    "placeholder-without-picture": lambda make: add(text(make), 0, " <image>"),
    "picture-without-placeholder": _no_placeholder,
    "placeholder-count": lambda make: add(make.sample(), 2, " <image>"),
    "placeholder-in-answer": lambda make: add(make.sample(), 1, " <image>"),
    "placeholder-misspelled": _misspelled,
    "image-type": lambda make: put(make.sample(), image=7),
    "image-empty": lambda make: put(text(make), image=""),
    "image-keys": lambda make: (lambda raw: put(raw, images=[raw["image"]]))(make.sample()),
    "picture-absolute": lambda make: put(make.sample(), image=str(make.corpus.pictures / make.file("png"))),
    "picture-escapes": _escaping,
    "picture-address": lambda make: put(make.sample(), image="https://example.org/a.png"),
    "picture-missing": lambda make: put(make.sample(), image=f"none{make.rng.getrandbits(32)}.png"),
    "picture-case": _in_other_case,
    "picture-zero-bytes": _bytes(b""),
    "picture-unreadable": _bytes(b"<!DOCTYPE html><html><body>404 Not Found</body></html>"),
    "picture-broken": _broken,
    "picture-truncated": _cut,
    "picture-over-limit": _sized(2, 600),
    "picture-extension": _misnamed,
    "picture-tiny": _sized(9, 9),
    "picture-aspect": _sized(24, 480),
    "picture-animated": _animated,
    "picture-flat": _flat,
    "text-control-token": lambda make: add(make.sample(), 1, make.rng.choice((" </s>", " [INST]", "<unk>"))),
    "text-role-marker": lambda make: add(make.sample(), 1, " USER: And then? ASSISTANT: Nothing."),
    "text-surrogate": lambda make: add(make.sample(), 1, " \ud83d"),
    "text-replacement": lambda make: add(make.sample(), 1, " caf\ufffd"),
    "text-mojibake": lambda make: add(make.sample(), 1, " caf\u00c3\u00a9 \u00e2\u20ac\u2122"),
    "text-control-character": lambda make: add(make.sample(), 1, " ding\x07"),
    "over-length": lambda make: _long(make, 3),
    "question-too-long": lambda make: _long(make, 0),
    "sample-duplicate": _again,
    "answer-conflict": _conflict,
    "picture-duplicate": lambda make: _copied(make, None),
    "picture-near-duplicate": lambda make: _copied(make, 60),
    "benchmark-overlap": _of_benchmark,
    "json-trailing-comma": lambda make: _dump(text(make), "}]}", "}],}"),
    "json-control-character": lambda make: _dump(text(make), "It is", "It\nis".replace("\n", "\t")),
    "json-duplicate-key": lambda make: _dump(text(make), '{"id": ', '{"id": "x", "id": '),
    "json-syntax": lambda make: _dump(
        text(make), '"conversations"', make.rng.choice(("conversations", "'c'"))
    ),
}
"""Code -> a sample with that fault alone."""


def _nothing_trained(make: Builder) -> Raw:
    return put(text(make), conversations=text(make)["conversations"][1:3])


COMBINED: list[tuple[Plant, tuple[str, ...]]] = [
    (
        lambda make: json.dumps(text(make)).encode().replace(b"It is", b"It \xe9s", 1),
        ("file-encoding", "text-replacement"),
    ),
    (_nothing_trained, ("starts-with-answer", "ends-with-question", "nothing-trained")),
    (lambda make: put(make.sample(), video="a.mp4"), ("key-unknown", "record-refused")),
]
"""Faults that cannot come alone."""
NUM_KINDS = len(SAMPLES.keys() | {code for _, codes in COMBINED for code in codes})


def plant(folder: Path, *, seed: int, num_sound: int = 150, times: int = 2) -> Corpus:
    """Write a corpus with every fault `times` times, at random places among sound samples."""
    make = Builder(folder, seed)
    # What others repeat comes first, so that the fault is theirs.
    first = [make.sample() for _ in range(10 * times)]
    make.earlier = list(first)
    sound = [make.sound(index) for index in range(num_sound)]
    items: list[tuple[Raw | str | bytes, tuple[str, ...]]] = [(raw, ()) for raw in sound]
    planted = [(SAMPLES[code], (code,)) for code in SAMPLES for _ in range(times)] + COMBINED
    items += [(make_one(make), codes) for make_one, codes in planted]
    random.Random(seed).shuffle(items)
    return write(make, [*((raw, ()) for raw in first), *items])
