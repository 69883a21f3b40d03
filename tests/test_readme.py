"""README.md and docs/*.md: every command in them is run, and every answer they show is the one that is given.

Released checkpoints of 13 to 30 GB are stood in for by tiny ones of the same kind under the same names.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llava import errors
from llava.demo import embedded_model_path, example_images
from tests.documents import (
    MIN_REASON_WORDS,
    ROOT,
    RUN_LANGUAGES,
    Block,
    blocks_of,
    commands_of,
    expected_outputs,
    links_of,
    run_block,
)

DOCUMENTS = [ROOT / "README.md", ROOT / "bench" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIXTURES = ROOT / "tests" / "fixtures"
CHECKPOINTS = FIXTURES / "checkpoints"
STAND_INS = {
    "llava-v1.5-7b": CHECKPOINTS / "llava-a-clip-mlp2x",
    "InternVL-Chat-ViT-6B-Vicuna-7B": CHECKPOINTS / "llava-b-internvit-mlp2x",
    "llava-v1.5-7b-pretrain": CHECKPOINTS / "llava-f-stage1",
    "vicuna-7b-v1.5": CHECKPOINTS / "vicuna-f-base",
    "llava-v1.5-7b-lora": FIXTURES / "training" / "lora" / "written",
    "llava/demo/InternVL-Chat-Tiny": embedded_model_path(),
    "towers": CHECKPOINTS / "towers",
    "checkpoints/towers": CHECKPOINTS / "towers",
    "recipes": ROOT / "recipes",
    "captions": FIXTURES / "training" / "pretrain",
    "conversations": FIXTURES / "training" / "finetune-data",
}
LORA_BASE = "vicuna-7b-v1.5-with-added-tokens"

needs_embedded_model = pytest.mark.skipif(
    not (embedded_model_path() / "config.json").is_file(), reason="the embedded model is not there yet"
)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documents speak of, as the working directory."""
    for name, source in STAND_INS.items():
        shutil.copytree(source, tmp_path / name)
    shutil.copytree(ROOT / "llava" / "demo" / "images", tmp_path / "llava" / "demo" / "images")
    shutil.copytree(CHECKPOINTS / "vicuna-f-base", tmp_path / LORA_BASE)
    shutil.copytree(FIXTURES / "training" / "tokenizer-mt", tmp_path / LORA_BASE, dirs_exist_ok=True)
    make_base(tmp_path / "llama-7b", of=tmp_path / "llava-v1.5-7b")
    pictures = [*example_images(), *sorted((CHECKPOINTS / "images").glob("*.png"))]
    (tmp_path / "pictures").mkdir()
    for number, picture in enumerate(pictures[:3]):
        shutil.copy(picture, tmp_path / "pictures" / f"{number}.png")
    shutil.copy(pictures[0], tmp_path / "photo.png")
    questions = [{"id": n, "image": "photo.png", "prompt": "How many objects are there?"} for n in range(2)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_named_files(blocks: list[Block]) -> None:
    """Write YAML blocks that begin with a file's name ("# captions.yaml") into the working directory."""
    for block in blocks:
        first = block.text.partition("\n")[0]
        if block.language == "yaml" and first.startswith("# ") and first.endswith(".yaml"):
            Path(first.removeprefix("# ")).write_text(block.text, encoding="utf-8")


def make_base(folder: Path, *, of: Path) -> None:
    """Make the language model that the checkpoint `of` could have been trained from."""
    shutil.copytree(of, folder)
    weights = torch.load(of / "pytorch_model.bin", weights_only=True)
    base = {name: tensor * 0.75 for name, tensor in weights.items() if "mm_projector" not in name}
    torch.save(base, folder / "pytorch_model.bin")
    config = json.loads((of / "config.json").read_text()) | {"model_type": "llama"}
    config = {
        name: value for name, value in config.items() if not name.startswith(("mm_", "tune_mm", "use_mm"))
    }
    (folder / "config.json").write_text(json.dumps(config))


@needs_embedded_model
@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_the_documents_say_is_what_happens(path: Path) -> None:
    write_named_files(blocks_of(path))
    namespace: dict[str, Any] = {"__name__": "document"}
    for block, expected in expected_outputs(blocks_of(path)):
        printed = run_block(block, namespace)
        if expected is not None:
            assert printed == expected.text, f"{block} prints something else than {expected} shows"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_blocks_that_are_not_run_say_why(path: Path) -> None:
    for block in blocks_of(path):
        assert block.language, f"{block} names no language"
        if block.language in RUN_LANGUAGES and not block.is_run:
            assert len(block.reason.split()) >= MIN_REASON_WORDS, f"{block} is not run without a reason"


def test_an_output_follows_what_prints_it() -> None:
    for path in DOCUMENTS:
        blocks = blocks_of(path)
        for before, block in zip([None, *blocks], blocks, strict=False):
            if block.note == "output":
                assert before is not None, f"{block} shows the output of nothing"
                assert before.is_run, f"{block} shows the output of a block that is not run"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(path: Path) -> None:
    missing = [target for target in links_of(path) if not (path.parent / target).exists()]
    assert not missing


def test_every_error_code_is_explained() -> None:
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| [`")
    ]
    rows = [[row[0].partition("`]")[0].removeprefix("[`"), *row[1:]] for row in rows]
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    known = {cls.code: cls.__name__ for cls in classes if issubclass(cls, errors.LlavaError)}
    assert {row[0]: row[1] for row in rows} == known
    assert all(len(row) == 4 and all(row) for row in rows)


def test_every_bench_is_listed() -> None:
    text = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    scripts = [path.name for path in (ROOT / "bench").glob("*.py") if path.name != "__init__.py"]
    assert [name for name in scripts if f"`{name}`" not in text] == []


EXAMPLE = """
Text.

```sh
# a comment
llava chat \\
    --speed
```

<!-- output -->
```text
two
```

<!-- not run: needs a GPU -->

```sh
llava chat
```

```json
{}
```
"""


def test_blocks_are_read_with_what_is_said_about_them(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text(EXAMPLE)
    blocks = blocks_of(tmp_path / "x.md")
    assert [(b.language, b.line, b.note, b.is_run) for b in blocks] == [
        ("sh", 4, "", True),
        ("text", 11, "output", False),
        ("sh", 17, "not run", False),
        ("json", 21, "", False),
    ]
    assert blocks[2].reason == "needs a GPU"
    assert list(expected_outputs(blocks)) == [(blocks[0], blocks[1])]
    assert commands_of(blocks[0].text) == ["llava chat      --speed"]


def test_a_command_that_fails_or_cannot_be_run_is_reported() -> None:
    def block(text: str) -> Block:
        return Block("x.md", 1, "sh", text)

    assert run_block(block("llava --version"), {}).startswith("llava ")
    with pytest.raises(AssertionError, match="gave 2: error"):
        run_block(block("llava chta"), {})
    with pytest.raises(AssertionError, match="cannot run 'curl'"):
        run_block(block("curl x"), {})
    assert run_block(Block("x.md", 1, "sh", "llava chta", "fails"), {}).startswith("error[usage]: ")
    assert run_block(Block("x.md", 1, "python", "print(1)"), {}) == "1\n"
