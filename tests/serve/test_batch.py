"""Many questions into one JSONL: what is read, what is written, what is resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llava.engine.each import Tally
from llava.engine.protocol import OnAnswer
from llava.engine.request import Answer, Request, SamplingParams
from llava.errors import DataError, FileError, PromptError, UsageError
from llava.serve.batch import AnswerFile, read_jobs, run_batch
from llava.serve.session import Picture, open_picture
from tests.serve.fakes import TOO_LONG, ScriptedEngine, save_picture, text_of

SETTINGS: dict[str, object] = {"model": "test", "sampling": {"temperature": 0.0}}


def opened(source: str) -> Picture:
    return open_picture(source, allow_url=False, on_notice=pytest.fail)


def answer_all(
    source: Path, output: Path, engine: ScriptedEngine, *, prompt: str | None = "What?", batch_size: int = 2
) -> Tally:
    return run_batch(
        engine,
        read_jobs(source, prompt=prompt, image_folder=None),
        AnswerFile(output, SETTINGS),
        sampling=SamplingParams(),
        open_picture=opened,
        batch_size=batch_size,
    )


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_questions(path: Path, *questions: object) -> Path:
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("b.png", "a.PNG", "deep/c.jpg")):
        save_picture(tmp_path / "pictures" / name, width=10 + number)
    (tmp_path / "pictures" / "notes.txt").write_text("not for us")
    return tmp_path / "pictures"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "answers.jsonl"


def test_a_folder_is_answered_in_order_of_name(folder: Path, output: Path) -> None:
    engine = ScriptedEngine()
    tally = answer_all(folder, output, engine)
    assert [record["id"] for record in records_of(output)] == ["a.PNG", "b.png", "deep/c.jpg"]
    assert records_of(output)[0] == {
        "id": "a.PNG",
        "prompt": "What?",
        "images": ["a.PNG"],
        "answer": "heard: # What? pictures: [11]",
        "finish_reason": "stop",
        "num_prompt_tokens": 7,
        "num_new_tokens": 30,
    }
    assert (tally.num_jobs, tally.num_answered, tally.num_skipped, tally.failed) == (3, 3, 0, [])
    assert engine.batch_sizes == [2, 1]


def test_a_jsonl_takes_the_names_of_the_original_and_ours(folder: Path, output: Path) -> None:
    source = write_questions(
        folder / "questions.jsonl",
        {"id": 7, "image": "a.PNG", "prompt": "One?"},
        {"question_id": "q", "image": "b.png", "text": "Two?", "category": "x"},
        {"images": ["a.PNG", "b.png"]},
        {"images": [], "prompt": "Four?"},
    )
    answer_all(source, output, ScriptedEngine())
    assert [(record["id"], record["answer"]) for record in records_of(output)] == [
        (7, "heard: # One? pictures: [11]"),
        ("q", "heard: # Two? pictures: [10]"),
        (3, "heard: # # What? pictures: [11,10]"),
        (4, "heard: Four? pictures: []"),
    ]


def test_paths_of_a_jsonl_start_at_the_image_folder(folder: Path, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "questions.jsonl", {"image": "a.PNG", "prompt": "?"})
    (job,) = read_jobs(source, prompt=None, image_folder=folder)
    assert job.paths == (str(folder / "a.PNG"),)
    assert job.images == ("a.PNG",)


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], "holds no questions"),
        ([[1]], "line 1 is not an object"),
        ([{"image": "a.png"}], 'line 1 has no "prompt"'),
        ([{"prompt": "One?", "imgae": "a.png"}], 'line 1 has no "image"'),
        ([{"prompt": "One?", "image": 3}], "line 1: images are 3"),
        ([{"prompt": "One?", "image": "a", "id": [1]}], r"line 1: id is \[1\]"),
        (
            [{"prompt": "One?", "image": "a", "id": 1}, {"prompt": "Two?", "image": "b", "id": 1}],
            "appears twice",
        ),
    ],
)
def test_a_wrong_question_file_is_refused_before_anything_is_asked(
    questions: Sequence[object], message: str, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "questions.jsonl", *questions)
    with pytest.raises(DataError, match=message):
        read_jobs(source, prompt=None, image_folder=None)


def test_a_folder_needs_pictures_and_a_question(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no question"):
        read_jobs(folder, prompt=None, image_folder=None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no pictures"):
        read_jobs(tmp_path / "empty", prompt="?", image_folder=None)
    with pytest.raises(FileError, match="does not exist"):
        read_jobs(tmp_path / "missing", prompt="?", image_folder=None)


def test_a_bad_picture_is_a_record_and_the_others_are_answered(folder: Path, output: Path) -> None:
    (folder / "aa.png").write_text("no picture")
    tally = answer_all(folder, output, ScriptedEngine())
    by_id = {record["id"]: record for record in records_of(output)}
    assert by_id["aa.png"]["error"]["code"] == "image"
    assert "not a picture" in by_id["aa.png"]["error"]["cause"]
    assert "answer" not in by_id["aa.png"]
    assert tally.failed == ["aa.png"]
    assert tally.num_answered == 3
    assert tally.line() == "4 questions: 3 answered, 1 failed (aa.png)"


def test_one_impossible_question_does_not_cost_its_batch(folder: Path, output: Path) -> None:
    source = write_questions(
        folder / "q.jsonl", *({"image": "a.PNG", "prompt": text} for text in ("One?", TOO_LONG, "Three?"))
    )
    tally = answer_all(source, output, ScriptedEngine(), batch_size=3)
    assert [list(record)[-1] for record in records_of(output)] == [
        "num_new_tokens",
        "error",
        "num_new_tokens",
    ]
    assert records_of(output)[1]["error"]["code"] == "context-length"
    assert tally.num_answered == 2


def test_a_second_run_answers_only_what_is_missing(folder: Path, output: Path) -> None:
    answer_all(folder, output, ScriptedEngine())
    save_picture(folder / "d.png")
    engine = ScriptedEngine()
    tally = answer_all(folder, output, engine)
    assert [record["id"] for record in records_of(output)] == ["a.PNG", "b.png", "deep/c.jpg", "d.png"]
    assert len(engine.requests) == 1
    assert tally.line() == "4 questions: 1 answered, 0 failed, 3 answered before"


def test_errors_are_tried_again_and_not_repeated(folder: Path, output: Path) -> None:
    (folder / "bad.png").write_text("no picture")
    answer_all(folder, output, ScriptedEngine())
    answer_all(folder, output, ScriptedEngine())
    assert len(records_of(output)) == 4
    save_picture(folder / "bad.png")
    tally = answer_all(folder, output, ScriptedEngine())
    assert tally.num_answered == 1
    assert "answer" in records_of(output)[-1]
    assert answer_all(folder, output, ScriptedEngine()).num_skipped == 4


class Interrupted(ScriptedEngine):
    """Answers one batch, then Ctrl-C is pressed."""

    def generate(
        self, requests: Sequence[Request], *, batch_size: int = 8, on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        if self.batch_sizes:
            raise KeyboardInterrupt
        return super().generate(requests, batch_size=batch_size, on_answer=on_answer)


def test_an_interrupted_run_goes_on_where_it_ended(folder: Path, output: Path) -> None:
    tally = answer_all(folder, output, Interrupted(), batch_size=1)
    assert tally.is_interrupted
    assert "the same command goes on from here" in tally.line()
    assert len(records_of(output)) == 1
    engine = ScriptedEngine()
    assert answer_all(folder, output, engine).num_skipped == 1
    assert [text_of(request.turns[0]) for request in engine.requests] == ["#\nWhat?"] * 2


def test_an_unfinished_last_line_is_dropped_and_answered_again(
    folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_all(folder, output, ScriptedEngine())
    whole = output.read_text()
    output.write_text(whole[:-20])
    assert answer_all(folder, output, ScriptedEngine()).num_answered == 1
    assert output.read_text() == whole
    assert "the last line is unfinished" in capsys.readouterr().err


def test_a_broken_line_in_the_middle_is_an_error(folder: Path, output: Path) -> None:
    answer_all(folder, output, ScriptedEngine())
    output.write_text("{broken\n" + output.read_text())
    with pytest.raises(FileError, match="line 1 is not JSON"):
        AnswerFile(output, SETTINGS)


def test_an_output_made_with_other_settings_is_refused(folder: Path, output: Path) -> None:
    answer_all(folder, output, ScriptedEngine())
    before = output.read_text()
    with pytest.raises(UsageError, match=r"other settings: model \('test', now 'other'\)"):
        AnswerFile(output, {**SETTINGS, "model": "other"})
    assert output.read_text() == before


def test_an_output_of_another_question_is_refused(folder: Path, output: Path) -> None:
    answer_all(folder, output, ScriptedEngine())
    with pytest.raises(UsageError, match=r"answers another question under id 'a.PNG'"):
        answer_all(folder, output, ScriptedEngine(), prompt="Something else?")


def test_a_file_that_no_batch_made_is_not_appended_to(output: Path) -> None:
    output.parent.mkdir()
    output.write_text("precious\n")
    with pytest.raises(UsageError, match="exists without"):
        AnswerFile(output, SETTINGS)
    assert output.read_text() == "precious\n"


def test_an_output_that_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(UsageError, match="is no plain file"):
            AnswerFile(path, SETTINGS)


def test_nothing_is_written_before_the_first_answer(output: Path) -> None:
    AnswerFile(output, SETTINGS)
    assert not output.parent.exists()


def test_a_picture_inside_the_jsonl_is_named_by_its_hash(folder: Path, output: Path) -> None:
    import base64

    data = base64.b64encode((folder / "a.PNG").read_bytes()).decode()
    source = write_questions(folder / "q.jsonl", {"image": f"data:image/png;base64,{data}", "prompt": "?"})
    answer_all(source, output, ScriptedEngine())
    (record,) = records_of(output)
    assert record["answer"].endswith("pictures: [11]")
    assert record["images"][0].startswith("data:sha256,")


def test_a_url_in_a_jsonl_is_not_fetched(folder: Path, output: Path) -> None:
    source = write_questions(folder / "q.jsonl", {"image": "https://example.com/a.png", "prompt": "?"})
    answer_all(source, output, ScriptedEngine())
    assert "switched off" in records_of(output)[0]["error"]["cause"]


def test_halves_of_characters_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "q.jsonl"
    source.write_text('{"image": "a.png", "prompt": "\\ud800"}\n')
    with pytest.raises(PromptError, match="line 1 is not valid UTF-8"):
        read_jobs(source, prompt=None, image_folder=None)
