"""Questions into an answers file: order, faults, kills, other settings, samples."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llava.engine.request import SamplingParams
from llava.errors import DataError, EngineError, FileError, UsageError
from llava.eval.answer_file import AnswerFile
from llava.eval.answering import Asking, blocks_of, changed_when_alone, chunk, run
from llava.eval.questions import Question, read_questions
from tests.eval.fakes import TOO_LONG, EchoAnswerer, EchoEngine, make_pictures

GREEDY = SamplingParams()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    make_pictures(tmp_path / "images", 5)
    return tmp_path / "images"


def questions_of(num_questions: int = 12) -> list[Question]:
    return [Question(id=n, text=f"Number {n}?", image=f"{n % 5}.png") for n in range(num_questions)]


def answer(
    path: Path,
    images: Path,
    questions: list[Question],
    answerer: EchoAnswerer | None = None,
    sampling: SamplingParams = GREEDY,
    seed: int = 0,
) -> Any:
    answerer = answerer or EchoAnswerer()
    asking = Asking(images, sampling, batch_size=3, seed=seed)
    output = AnswerFile(path, questions, {**answerer.settings, **asking.settings()}, model_id="echo-7b")
    return run(answerer, output, questions, asking)


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}


def test_answers_stand_in_the_order_of_the_questions_in_the_originals_form(
    tmp_path: Path, images: Path
) -> None:
    answerer, path = EchoAnswerer(), tmp_path / "out" / "answers.jsonl"
    tally = answer(path, images, questions_of(), answerer)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["question_id"] for record in records] == list(range(12))
    assert list(records[0]) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert records[7]["text"] == "Number 7? [12] None"
    assert all(len(record["answer_id"]) == 22 for record in records)
    assert (tally.num_answered, tally.failed) == (12, [])
    assert sorted(files_of(path)) == ["answers.jsonl", "answers.jsonl.settings.json"]


def test_questions_about_one_picture_are_asked_next_to_each_other(tmp_path: Path, images: Path) -> None:
    answerer = EchoAnswerer()
    answer(tmp_path / "a.jsonl", images, questions_of(), answerer)
    assert [int(text.split()[1][:-1]) % 5 for text in answerer.engine.asked] == sorted(
        n % 5 for n in range(12)
    )


def test_blocks_keep_pictures_together_and_lose_nothing() -> None:
    questions = [Question(id=n, text="?", image=f"{n % 7}.png") for n in range(100)]
    blocks = blocks_of(questions, 20)
    assert sorted(question.id for block in blocks for question in block) == list(range(100))
    assert all(len(block) <= 20 for block in blocks)
    homes = {question.image: number for number, block in enumerate(blocks) for question in block}
    assert all(homes[question.image] == number for number, block in enumerate(blocks) for question in block)


@pytest.mark.parametrize("killed_at", [0, 1, 5, 11])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_killed_and_gone_on_with_it_is_the_same_to_the_byte(
    tmp_path: Path, images: Path, killed_at: int, temperature: float
) -> None:
    sampling = SamplingParams(temperature=temperature)
    whole, broken = tmp_path / "whole" / "a.jsonl", tmp_path / "broken" / "a.jsonl"
    answer(whole, images, questions_of(), sampling=sampling)

    def die(number: int) -> None:
        if number == killed_at:
            raise EngineError("out of memory")

    with pytest.raises(EngineError):
        answer(broken, images, questions_of(), EchoAnswerer(EchoEngine(die)), sampling)
    journal = broken.with_name("a.jsonl.journal.jsonl")
    assert len(journal.read_text().splitlines()) == killed_at
    with journal.open("a") as stream:
        stream.write('{"question_id": 3, "prom')
    resumed = EchoAnswerer()
    tally = answer(broken, images, questions_of(), resumed, sampling)
    assert tally.num_skipped == killed_at
    assert len(resumed.engine.asked) == 12 - killed_at
    assert files_of(broken) == files_of(whole)


def test_a_run_that_is_complete_asks_nothing_and_changes_nothing(tmp_path: Path, images: Path) -> None:
    path = tmp_path / "out" / "a.jsonl"
    answer(path, images, questions_of())
    before, again = files_of(path), EchoAnswerer()
    assert answer(path, images, questions_of(), again).num_skipped == 12
    assert again.engine.asked == []
    assert files_of(path) == before


def test_a_missing_picture_costs_only_its_questions_and_is_tried_again(tmp_path: Path, images: Path) -> None:
    path = tmp_path / "out" / "a.jsonl"
    (images / "2.png").rename(images / "away.png")
    (images / "3.png").rename(images / "3.bak")
    (images / "3.png").write_bytes(b"no picture at all")
    tally = answer(path, images, questions_of())
    assert sorted(tally.failed) == [2, 3, 7, 8]
    journal = path.with_name("a.jsonl.journal.jsonl").read_text().splitlines()
    failures = {
        record["question_id"]: record["error"]["code"]
        for record in map(json.loads, journal)
        if "error" in record
    }
    assert failures == dict.fromkeys((2, 3, 7, 8), "image")
    assert len(path.read_text().splitlines()) == 8
    (images / "away.png").rename(images / "2.png")
    (images / "3.bak").rename(images / "3.png")
    again = answer(path, images, questions_of())
    assert (again.num_skipped, again.num_answered, again.failed) == (8, 4, [])
    whole = tmp_path / "whole" / "a.jsonl"
    answer(whole, images, questions_of())
    assert files_of(path) == files_of(whole)


def test_a_prompt_over_the_context_costs_only_itself(tmp_path: Path, images: Path) -> None:
    questions = [*questions_of(4), Question(id="long", text=TOO_LONG), *questions_of(9)[4:]]
    assert answer(tmp_path / "a.jsonl", images, questions).failed == ["long"]
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 9


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "other"}, "model ('echo', now 'other')"),
        ({"template": "llava_v0"}, "template"),
        ({"image": {"aspect": "square"}}, "image"),
    ],
)
def test_answers_of_another_model_or_preprocessing_are_refused(
    tmp_path: Path, images: Path, change: dict[str, object], named: str
) -> None:
    path = tmp_path / "out" / "a.jsonl"
    answer(path, images, questions_of())
    before = files_of(path)
    with pytest.raises(UsageError) as refusal:
        answer(path, images, questions_of(), EchoAnswerer(None, **change))
    assert named in str(refusal.value)
    assert files_of(path) == before


def test_other_sampling_is_refused_in_the_middle_too(tmp_path: Path, images: Path) -> None:
    def die(number: int) -> None:
        if number == 4:
            raise EngineError("gone")

    with pytest.raises(EngineError):
        answer(tmp_path / "a.jsonl", images, questions_of(), EchoAnswerer(EchoEngine(die)))
    with pytest.raises(UsageError, match="sampling"):
        answer(tmp_path / "a.jsonl", images, questions_of(), sampling=SamplingParams(max_new_tokens=7))


def test_a_changed_prompt_is_refused_and_named(tmp_path: Path, images: Path) -> None:
    path = tmp_path / "out" / "a.jsonl"
    answer(path, images, questions_of())
    changed = questions_of()
    changed[3] = Question(id=3, text="Number 3, please?", image="3.png")
    with pytest.raises(UsageError, match=r"3: prompt 'Number 3\?', now 'Number 3, please\?'"):
        answer(path, images, changed)
    with pytest.raises(UsageError, match="answers other questions"):
        answer(path, images, questions_of(3))
    assert answer(path, images, questions_of(14)).num_skipped == 12, "more questions are no other questions"


def test_a_file_of_unknown_origin_is_refused(tmp_path: Path, images: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question_id": 1, "text": "dear"}\n')
    with pytest.raises(UsageError, match="which would say how it was made"):
        answer(tmp_path / "a.jsonl", images, questions_of())
    assert (tmp_path / "a.jsonl").read_text() == '{"question_id": 1, "text": "dear"}\n'


def test_a_full_disk_ends_the_run_and_keeps_whole_lines(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write, room = os.write, [1000]

    def write(descriptor: int, data: bytes) -> int:
        if room[0] <= 0:
            raise OSError(28, "No space left on device")
        written = real_write(descriptor, data[: room[0]])
        room[0] -= written
        return written

    path = tmp_path / "out" / "a.jsonl"
    monkeypatch.setattr("llava.journal.os.write", write)
    with pytest.raises(FileError, match="No space left on device"):
        answer(path, images, questions_of())
    monkeypatch.undo()
    kept = path.with_name("a.jsonl.journal.jsonl").read_text()
    assert kept.endswith("\n")
    assert 0 < len(kept.splitlines()) < 12
    tally = answer(path, images, questions_of())
    assert tally.num_skipped == len(kept.splitlines())
    answer(tmp_path / "whole" / "a.jsonl", images, questions_of())
    assert files_of(path) == files_of(tmp_path / "whole" / "a.jsonl")


def test_two_runs_do_not_write_the_same_file(tmp_path: Path) -> None:
    first = AnswerFile(tmp_path / "a.jsonl", questions_of(), {}, model_id="x")
    with pytest.raises(UsageError, match="another process"):
        AnswerFile(tmp_path / "a.jsonl", questions_of(), {}, model_id="x")
    first.close()


def test_ctrl_c_keeps_what_was_answered(tmp_path: Path, images: Path) -> None:
    def interrupt(number: int) -> None:
        if number == 5:
            raise KeyboardInterrupt

    tally = answer(tmp_path / "a.jsonl", images, questions_of(), EchoAnswerer(EchoEngine(interrupt)))
    assert tally.is_interrupted
    assert "goes on from here" in tally.line()
    assert not (tmp_path / "a.jsonl").exists()
    assert answer(tmp_path / "a.jsonl", images, questions_of()).num_skipped == 5


def test_sampling_draws_by_question_and_seed(tmp_path: Path, images: Path) -> None:
    texts: list[list[str]] = []
    for seed in (0, 0, 1):
        path = tmp_path / f"{len(texts)}" / "a.jsonl"
        answer(path, images, questions_of(), sampling=SamplingParams(temperature=1.0), seed=seed)
        texts.append([json.loads(line)["text"] for line in path.read_text().splitlines()])
    assert texts[0] == texts[1]
    assert not set(texts[0]) & set(texts[2])


def test_asking_again_one_by_one_finds_what_changes(tmp_path: Path, images: Path) -> None:
    answerer, asking, questions = EchoAnswerer(), Asking(images, GREEDY), questions_of()
    output = AnswerFile(tmp_path / "a.jsonl", questions, {}, model_id="x")
    run(answerer, output, questions, asking)
    assert changed_when_alone(answerer, output, questions, asking, 12) == []
    output = AnswerFile(tmp_path / "a.jsonl", questions, {}, model_id="x")
    output.keep(questions[4], "something else")
    changed = changed_when_alone(answerer, output, questions, asking, 12)
    assert [(item.question.id, item.before) for item in changed] == [(4, "something else")]


@pytest.mark.parametrize("num_questions", [0, 1, 5, 8, 10, 17, 100])
@pytest.mark.parametrize("num_chunks", [1, 2, 3, 4, 8, 9])
def test_chunks_are_cut_as_the_original_cuts_them_and_join_to_the_whole(
    num_questions: int, num_chunks: int
) -> None:
    questions = questions_of(num_questions)
    chunks = [chunk(questions, num_chunks, index) for index in range(num_chunks)]
    assert [question for part in chunks for question in part] == questions
    assert all(len(part) <= -(-num_questions // num_chunks) for part in chunks)


def test_questions_may_share_an_id_as_those_of_mme_and_textvqa_do(tmp_path: Path, images: Path) -> None:
    lines = [{"question_id": "a/1.png", "image": "1.png", "text": text} for text in ("One?", "Two?")]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    questions = read_questions(tmp_path / "q.jsonl")
    answer(tmp_path / "a.jsonl", images, questions)
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in records] == ["One?", "Two?"]
    (tmp_path / "q.jsonl").write_text(json.dumps(lines[0]) + "\n" + json.dumps(lines[0]) + "\n")
    with pytest.raises(DataError, match=r"line 2: question 'a/1\.png' is that of line 1"):
        read_questions(tmp_path / "q.jsonl")
