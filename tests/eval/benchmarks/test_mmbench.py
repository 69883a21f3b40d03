"""MMBench on a table of our own: rotations, options, the upload, and rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava.errors import DataError, FileError, UsageError
from llava.eval.benchmark import Files, get_benchmark
from llava.eval.benchmarks.mmbench import read_table
from llava.files import write_text

pandas = pytest.importorskip("pandas")
MMBENCH = get_benchmark("mmbench")
COLUMNS = "index question hint A B C D answer category image source l2-category comment split".split()  # noqa: SIM905
PICTURE = "/9j/AAAA"


def row(index: int, a: str, b: str, answer: str, c: str = "") -> list[str]:
    head = [str(index), "Which?", "", a, b, c, "", answer]
    return [
        *head,
        "color",
        PICTURE if index < 10**6 else str(index % 10**6),
        "s",
        "coarse_perception",
        "",
        "dev",
    ]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Return the files of two questions, each with one rotation; red and 7 are right."""
    rows = [row(0, "red", "blue", "A"), row(10**6, "blue", "red", "B")]
    rows += [row(1, "7", "8", "A"), row(1 + 10**6, "8", "7", "B")]
    files = MMBENCH.files(tmp_path)
    write_text(files.questions, "".join("\t".join(line) + "\n" for line in (COLUMNS, *rows)))
    return files


def answers(**texts: str) -> list[dict[str, Any]]:
    places = {"a": 0, "ra": 10**6, "b": 1, "rb": 1 + 10**6}
    return [{"question_id": places[name], "text": text} for name, text in texts.items()]


def test_a_question_is_right_if_all_its_rotations_are(files: Files) -> None:
    scoring = MMBENCH.score(files, answers(rb="A", b="A. 7", ra="red it is", a="A"))
    assert scoring.value == 50
    assert scoring.details["per_question"] == {"0": 1, "1": 0}
    assert scoring.figures["vanilla_all_rows"] == 0.75
    assert scoring.figures["vanilla_first_row_only"] == 1
    assert scoring.figures["report/CP"] == scoring.figures["report/color"] == 0.5
    assert not scoring.notices


def test_missing_foreign_and_doubled_answers_are_said(files: Files) -> None:
    given = [*answers(a="B", ra="B", b="A"), *answers(a="A"), {"question_id": 77, "text": "A"}]
    scoring = MMBENCH.score(files, given)
    said = " ".join(scoring.notices)
    assert scoring.value == 50
    assert "1 have no answer (1000001)" in said
    assert "1 answers belong to no question (77)" in said
    assert "1 questions are answered more than once (0)" in said


def test_options_that_are_numbers_stay_text(files: Files) -> None:
    assert list(read_table(files.questions)["A"]) == ["red", "blue", "7", "8"]
    questions = MMBENCH.questions(files)
    assert questions[2].text.startswith("Which?\nA. 7\nB. 8\n")
    # A rotation has the number of the row with the picture.
    assert questions[1].image == questions[0].image


def test_the_upload_has_predictions_and_not_what_the_server_knows(files: Files, tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    target = MMBENCH.export(files, [*answers(a="B", rb="x\ty"), *answers(a="A")], tmp_path / "up" / "m.xlsx")
    table = pandas.read_excel(target)
    assert list(table.columns) == ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]
    assert list(table["prediction"].fillna("")) == ["A", "", "", "x\ty"]
    with pytest.raises(DataError, match="no answer belongs to a question of the table"):
        MMBENCH.export(files, [{"question_id": 9, "text": "A"}], tmp_path / "never.xlsx")
    assert not (tmp_path / "never.xlsx").exists()


def test_later_rounds_are_not_sent_in_and_not_scored(files: Files, tmp_path: Path) -> None:
    first = answers(a="A", ra="B", b="A", rb="B")
    rounds = [{**record, "round_id": number} for number in (0, 1) for record in first]
    scoring = MMBENCH.score(files, rounds)
    assert scoring.value == 100
    assert scoring.notices == ["4 answers are of later rounds (--all-rounds): only the first round is scored"]
    with pytest.raises(DataError, match="letters of later rounds mean other options"):
        MMBENCH.export(files, rounds, tmp_path / "m.xlsx")


def test_what_cannot_be_read_or_scored_is_named(files: Files, tmp_path: Path) -> None:
    path = files.questions
    text = path.read_text()
    write_text(path, text.replace("\tanswer\t", "\tother\t"))
    with pytest.raises(UsageError, match=r"has no answers, they are on the server.*llava eval export"):
        MMBENCH.score(files, answers(a="A"))
    write_text(path, text.replace("\tquestion\t", "\tasked\t"))
    with pytest.raises(DataError, match="has no column question"):
        MMBENCH.questions(files)
    write_text(path, text + "\t".join(["x", *row(0, "a", "b", "A")[1:]]) + "\n")
    with pytest.raises(DataError, match="an index is no number"):
        read_table(path)
    write_text(path, "")
    with pytest.raises(FileError, match="cannot be read as a table"):
        read_table(path)
    with pytest.raises(FileError, match="does not exist"):
        MMBENCH.questions(MMBENCH.files(tmp_path / "elsewhere"))
