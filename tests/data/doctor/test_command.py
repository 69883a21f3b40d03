"""`llava doctor` says what it found, by exit code, words, JSON and an HTML page."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path

import pytest

from llava.cli import main
from llava.data.mixture import open_mixture, open_paths
from tests.data.doctor.corpus import Builder, Raw
from tests.data.doctor.planted import plant


def data(folder: Path, samples: list[Raw], name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(raw) + "\n" for raw in samples), encoding="utf-8")
    return path


def doctor(*words: object) -> int:
    return main(["doctor", *map(str, words), "--workers", "0"])


@pytest.fixture
def make(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "corpus", 7)


def test_clean_data_exits_with_0(make: Builder, capsys: pytest.CaptureFixture[str]) -> None:
    path = data(make.corpus.folder, [make.sound(number) for number in range(6)])
    assert doctor(path, "--image-folder", make.corpus.pictures) == 0
    shown = capsys.readouterr()
    assert "0 errors, 0 warnings, 0 notes" in shown.out
    assert "[[ It is" in shown.out
    assert "the embedded model" in shown.err


def test_findings_exit_with_1_and_name_file_line_and_remedy(
    make: Builder, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = make.sample()
    bad["image"] = "gone.png"
    path = data(make.corpus.folder, [make.sample(), bad])
    assert doctor(path, "--image-folder", make.corpus.pictures) == 1
    shown = capsys.readouterr().out
    assert f"data.jsonl:2 {bad['id']}" in shown
    assert "picture-missing" in shown
    assert "Get the file" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.json"], "does not exist"),
        (["DATA", "--model", "x", "--tokenizer", "y"], "both given"),
        (["DATA", "--max-length", "0"], "--max-length"),
        (["DATA", "--fix", "out.txt"], "Name it .json or .jsonl"),
        (["DATA", "--fix", "DATA"], "would replace the data itself"),
        (["DATA", "--fix", "o.json", "--max-samples", "1"], "needs all samples"),
        (["DATA", "--template", "v9"], "template"),
        (["DATA", "--against", "nowhere"], "does not exist"),
        (["DATA", "--image-folder", "nowhere"], "does not exist"),
        (["DATA", "--reports", "x"], "Did you mean --report?"),
    ],
)
def test_what_cannot_be_done_exits_with_2(
    make: Builder, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    path = data(make.corpus.folder, [make.sample()])
    assert doctor(*[str(path) if word == "DATA" else word for word in words]) == 2
    assert said in capsys.readouterr().err


def test_json_holds_findings_counts_and_forecast(make: Builder, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = plant(make.corpus.folder / "more", seed=4, num_sound=5, times=1)
    assert doctor(corpus.data, "--image-folder", corpus.pictures, "--json", "--max-findings", 1) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["counts"]["picture-missing"] == 1
    finding = next(one for one in told["findings"] if one["code"] == "picture-missing")
    assert finding["severity"] == "error"
    assert finding["remedy"]
    assert told["errors"] == sum(
        told["counts"][one["code"]] for one in told["findings"] if one["severity"] == "error"
    )
    limits = [forecast["limit"] for forecast in told["tokens"]["forecast"]]
    assert limits == [512, 1024, 2048, 4096, 8192]


class _Page(html.parser.HTMLParser):
    """Collects tags and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and not (value or "").startswith("data:"):
                self.outside.append(value or "")
            if name.startswith("on"):
                self.outside.append(name)


def test_the_page_needs_nothing_else_and_escapes_the_data(make: Builder, tmp_path: Path) -> None:
    samples = [make.sample() for _ in range(3)]
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    samples[0]["conversations"][1]["value"] += attack
    samples[1]["id"] = f'"><b>{attack}'
    samples[1][attack] = 1
    samples[2]["image"] = f"{attack}.png"
    path = data(make.corpus.folder, samples)
    page = tmp_path / "report.html"
    assert doctor(path, "--image-folder", make.corpus.pictures, "--report", page) == 1
    parsed = _Page()
    text = page.read_text(encoding="utf-8")
    parsed.feed(text)
    assert "script" not in parsed.tags
    assert parsed.outside == []
    assert {"svg", "img", "mark", "details", "table"} <= set(parsed.tags)
    assert "&lt;script&gt;" in text


def test_openai_messages_are_examined(make: Builder, capsys: pytest.CaptureFixture[str]) -> None:
    image = {"type": "image_url", "image_url": {"url": make.file("png")}}
    good = {
        "id": "a",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": "A lamp."},
        ],
    }
    gone = json.loads(json.dumps(good).replace("p0001", "p9999"))
    path = data(make.corpus.folder, [good, {**gone, "id": "b"}])
    assert doctor(path, "--image-folder", make.corpus.pictures, "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert {(one["code"], one["line"]) for one in told["findings"]} == {("picture-missing", 2)}


def test_parquet_is_examined_by_row(make: Builder, capsys: pytest.CaptureFixture[str]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [make.sample(), make.sample()]
    for row in rows:
        row["image"] = {"bytes": (make.corpus.pictures / row["image"]).read_bytes(), "path": None}
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:200]
    path = make.corpus.folder / "data.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert doctor(path, "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert [(one["line"], one["severity"]) for one in told["findings"]] == [(2, "error")]
    assert doctor(path, "--fix", "x.json") == 2


def test_a_mixture_is_mended_whole_and_the_trainer_reads_it(make: Builder, tmp_path: Path) -> None:
    first, second = [make.sample() for _ in range(3)], [make.sample() for _ in range(3)]
    first[1]["conversations"][0]["value"] = first[1]["conversations"][0]["value"].replace(
        "<image>", "<Image>"
    )
    second[2]["image"] = "gone.png"
    folder = make.corpus.folder
    entries = {
        "one": {"root": str(make.corpus.pictures), "annotation": str(data(folder, first, "1.jsonl"))},
        "two": {
            "root": str(make.corpus.pictures),
            "annotation": str(data(folder, second, "2.jsonl")),
            "repeat_time": 3,
        },
    }
    meta = folder / "meta.json"
    meta.write_text(json.dumps(entries), encoding="utf-8")
    out = tmp_path / "out" / "clean.json"
    assert doctor(meta, "--fix", out) == 1
    assert doctor(out) == 0
    mixture = open_mixture(out, cache_folder=tmp_path / "cache")
    assert [entry.repeat_time for entry in mixture.entries] == [1, 3]
    ids = [mixture[index].id for index in range(len(mixture))]
    assert ids == [raw["id"] for raw in [*first, *second[:2]]]


def test_a_cleaned_file_is_read_by_the_trainer_sample_by_sample(tmp_path: Path) -> None:
    corpus = plant(tmp_path / "corpus", seed=9, num_sound=10, times=1)
    out = tmp_path / "clean.jsonl"
    words = ["--image-folder", corpus.pictures, "--against", corpus.benchmark]
    assert doctor(corpus.data, *words, "--fix", out) == 1
    source = open_paths(str(out), image_folder=str(corpus.pictures), cache_folder=tmp_path / "cache")
    assert len(source) == len(out.read_text(encoding="utf-8").splitlines())
    assert len({source[index].id for index in range(len(source))}) == len(source)
