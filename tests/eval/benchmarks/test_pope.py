"""POPE end to end on a set of our own: what is matched, what is said, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava.errors import DataError, FileError
from llava.eval.benchmark import get_benchmark
from llava.eval.questions import SHORT_ANSWER
from llava.files import write_jsonl

POPE = get_benchmark("pope")
SPLITS = ("adversarial", "popular", "random")
LABELS = ("yes", "no", "no", "yes")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    questions: list[dict[str, Any]] = []
    for split in SPLITS:
        labels: list[dict[str, Any]] = [
            {
                "question_id": number,
                "image": f"{number}.jpg",
                "text": f"Is there a {split} dog?",
                "label": label,
            }
            for number, label in enumerate(LABELS)
        ]
        write_jsonl(tmp_path / "pope" / "coco" / f"coco_pope_{split}.json", labels)
        questions += [
            {
                "question_id": len(questions) + number,
                "image": label["image"],
                "text": label["text"] + SHORT_ANSWER,
                "category": split,
            }
            for number, label in enumerate(labels)
        ]
    write_jsonl(tmp_path / "pope" / "llava_pope_test.jsonl", questions)
    return tmp_path


def answers() -> list[dict[str, Any]]:
    """Return right answers to everything."""
    words = {"yes": "Yes, there is.", "no": "No"}
    return [{"question_id": number, "text": words[label]} for number, label in enumerate(LABELS * 3)]


def test_right_answers_score_100_in_any_order(root: Path) -> None:
    files = POPE.files(root)
    assert len(POPE.questions(files)) == 12
    for given in (answers(), answers()[::-1]):
        scoring = POPE.score(files, given)
        assert scoring.value == 100
        assert scoring.figures["adversarial/TN"] == 2
        assert not scoring.notices


def test_missing_foreign_and_doubled_answers_are_said_and_cost_only_themselves(root: Path) -> None:
    given = [*answers()[1:], {"question_id": 99, "text": "yes"}, {"question_id": "5", "text": "yes"}]
    scoring = POPE.score(POPE.files(root), given)
    said = " ".join(scoring.notices)
    assert "1 have no answer (0)" in said
    assert "1 answers belong to no question (99)" in said
    assert "1 questions are answered more than once (5)" in said
    # The last answer to question 5 is wrong, as is the missing one.
    assert [item.id for item in scoring.items if not item.score] == [0, 5]
    assert scoring.figures["adversarial/FN"] == 1
    assert scoring.figures["popular/FP"] == 1


def test_only_yes_and_only_no_do_not_divide_by_zero(root: Path) -> None:
    said_no = [{**record, "text": "no"} for record in answers()]
    scoring = POPE.score(POPE.files(root), said_no)
    assert scoring.value == 0
    assert "adversarial: no right yes, so that F1 is 0" in scoring.notices


def test_data_that_lacks_says_what_to_download(root: Path) -> None:
    (root / "pope" / "llava_pope_test.jsonl").unlink()
    with pytest.raises(FileError, match=r"llava_pope_test\.jsonl does not exist.*AoiDragon/POPE"):
        POPE.questions(POPE.files(root))


def test_labels_of_another_release_are_refused(root: Path) -> None:
    write_jsonl(root / "pope" / "coco" / "coco_pope_random.json", [])
    with pytest.raises(DataError, match="is not among the labels of random"):
        POPE.score(POPE.files(root), answers())
