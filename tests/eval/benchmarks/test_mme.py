"""MME on folders of our own: pairs wherever their answers stand, tabs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava.errors import DataError, FileError
from llava.eval.benchmark import Files, get_benchmark
from llava.eval.benchmarks.mme import read_truth, score_lines
from llava.eval.questions import SHORT_ANSWER
from llava.files import write_jsonl, write_text

MME = get_benchmark("mme")
ASK = "Please answer yes or no."


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a data folder with two pictures of colours, and one of posters in the deeper layout."""
    release = tmp_path / "MME" / "MME_Benchmark_release_version"
    for name in ("a", "b"):
        asked = (
            f"Is {name} red? Please answer yes or no.\tYes\nIs {name} blue?  Please answer yes or no.\tNo\n"
        )
        write_text(release / "color" / f"{name}.txt", asked)
        write_text(release / "color" / f"{name}.jpg", "")
    write_text(release / "posters" / "questions_answers_YN" / "p.txt", f"New? {ASK}\tNo\n")
    write_text(release / "posters" / "images" / "p.png", "")
    return tmp_path


def answers() -> list[dict[str, Any]]:
    """Return right answers to the questions about colours, as one asks them."""
    return [
        {
            "question_id": f"color/{name}.jpg",
            "prompt": f"Is {name} {color}?{SHORT_ANSWER}",
            "text": {"red": "Yes", "blue": "No."}[color],
        }
        for name in ("a", "b")
        for color in ("red", "blue")
    ]


def asked_for(root: Path) -> Files:
    """Return the files with a question file that asks about colours only."""
    files = MME.files(root)
    questions = [
        {"question_id": r["question_id"], "image": r["question_id"], "text": r["prompt"]} for r in answers()
    ]
    write_jsonl(files.questions, questions)
    return files


def test_pairs_are_found_in_any_order(root: Path) -> None:
    files = asked_for(root)
    shuffled = [answers()[place] for place in (3, 0, 2, 1)]
    for given in (answers(), shuffled):
        scoring = MME.score(files, given)
        assert scoring.value == scoring.figures["Perception/tasks/color"] == 200
        assert scoring.figures["Cognition/total"] == 0
        assert not scoring.notices


def test_half_a_pair_earns_no_pair(root: Path) -> None:
    given = [*answers()[:3], {**answers()[3], "text": "maybe"}]
    scoring = MME.score(asked_for(root), given)
    assert scoring.value == 75 + 50
    detail = scoring.details["detail"]["color"]
    assert (detail["TP"], detail["TN"], detail["other_num"]) == (2, 1, 1)


def test_missing_and_doubled_answers_are_said(root: Path) -> None:
    given = [*answers()[1:], {**answers()[3], "text": "Yes"}]
    scoring = MME.score(asked_for(root), given)
    assert scoring.value == 50 + 0
    said = " ".join(scoring.notices)
    assert "1 questions have no answer: counted as wrong" in said
    assert "1 answers come again later: the last one counts" in said


def test_questions_are_made_from_the_folders_where_there_is_no_file(root: Path) -> None:
    questions = MME.questions(MME.files(root))
    assert [question.id for question in questions] == [
        *["color/a.jpg"] * 2,
        *["color/b.jpg"] * 2,
        "posters/images/p.png",
    ]
    assert questions[1].text == f"Is a blue?{SHORT_ANSWER}"
    scoring = MME.score(MME.files(root), answers())
    assert "1 pictures have not two questions: they count as no pair" in scoring.notices
    (root / "MME/MME_Benchmark_release_version/posters/images/p.png").unlink()
    with pytest.raises(DataError, match="has no picture"):
        MME.questions(MME.files(root))


def test_tabs_and_line_ends_of_answers_become_spaces_in_the_tables(root: Path) -> None:
    given = [{**answers()[1], "text": "No\tnot\r\nat\nall"}, answers()[0]]
    folder = MME.export(MME.files(root), given, root / "out")
    lines = (folder / "color.txt").read_text().splitlines()
    assert lines == [
        "a.txt\tIs a blue?  Please answer yes or no.\tNo\tNo not at all",
        "a.txt\tIs a red? Please answer yes or no.\tYes\tYes",
    ]


def test_what_cannot_be_placed_or_read_is_named(root: Path) -> None:
    files = MME.files(root)
    with pytest.raises(DataError, match=r"no question 'Is a green\?' about color/a\.jpg"):
        MME.score(files, [{**answers()[0], "prompt": f"Is a green?{SHORT_ANSWER}"}])
    with pytest.raises(DataError, match="no answers to score"):
        score_lines([])
    with pytest.raises(DataError, match="holds no questions"):
        read_truth(root / "MME" / "nothing")
    write_text(root / "MME/MME_Benchmark_release_version/color/c.txt", "no tab here\n")
    with pytest.raises(DataError, match=r"c\.txt line 1 has no tab"):
        read_truth(root / "MME/MME_Benchmark_release_version")
    with pytest.raises(FileError, match="does not exist"):
        MME.score(MME.files(root / "elsewhere"), answers())
