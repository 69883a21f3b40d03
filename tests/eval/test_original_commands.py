"""The original's scoring commands and converters: words, files, and what they refuse."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llava.errors import DependencyError, LlavaError
from llava.eval import eval_pope, eval_science_qa, eval_textvqa
from llava.eval.m4c_evaluator import (
    EvalAIAnswerProcessor,
    STVQAAccuracyEvaluator,
    STVQAANLSEvaluator,
    TextCapsBleu4Evaluator,
    TextVQAAccuracyEvaluator,
    edit_distance,
)
from llava.files import write_json, write_jsonl
from scripts import (
    convert_answer_to_mme,
    convert_gqa_for_eval,
    convert_mmbench_for_submission,
    convert_mmvet_for_eval,
    convert_seed_for_submission,
    convert_vizwiz_for_submission,
    convert_vqav2_for_submission,
)
from tests.eval.test_fixtures_of_scores import RECORDED, expected

recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded files are not here")


def test_names_of_the_original_score_as_they_did() -> None:
    assert EvalAIAnswerProcessor()("The  two Dogs.") == "2 dogs"
    entry = {"pred_answer": "A cat", "gt_answers": ["cat"] * 3 + ["dog"] * 7}
    assert TextVQAAccuracyEvaluator().eval_pred_list([entry]) == pytest.approx(0.9)
    assert STVQAAccuracyEvaluator().eval_pred_list([entry, {**entry, "pred_answer": "bird"}]) == 0.5
    assert STVQAANLSEvaluator().eval_pred_list([{"pred_answer": "cats", "gt_answers": ["cat"]}]) == 0.75
    assert STVQAANLSEvaluator().eval_pred_list([{"pred_answer": "xyz", "gt_answers": ["cat"]}]) == 0
    assert edit_distance("kitten", "sitting") == 3
    assert TextVQAAccuracyEvaluator().eval_pred_list([]) == 0


def test_bleu_of_captions_says_which_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    with pytest.raises(DependencyError, match=r"pip install pycocoevalcap \(and install Java\)"):
        TextCapsBleu4Evaluator()


def test_bleu_of_captions_is_that_of_its_package() -> None:
    pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    entry = {"pred_answer": "A red car on a road.", "gt_answers": ["a red car on a road", "a car"]}
    other = {"pred_answer": "two dogs play in snow", "gt_answers": ["nothing of the kind at all"]}
    evaluator = TextCapsBleu4Evaluator()
    assert evaluator.eval_pred_list([entry]) == pytest.approx(1.0)
    assert 0.4 < evaluator.eval_pred_list([entry, other]) < 0.8
    assert evaluator.eval_pred_list([]) == 0


@recorded
def test_scienceqa_prints_and_writes_what_the_original_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RECORDED / "scienceqa"
    words = ["--base-dir", folder, "--result-file", folder / "answers.jsonl"]
    words += ["--output-file", tmp_path / "o.json", "--output-result", tmp_path / "r.json"]
    assert eval_science_qa.main([str(word) for word in words]) == 0
    wanted = expected("scienceqa", "small")
    assert capsys.readouterr().out.strip() == wanted["stdout"].strip()
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["results"] == wanted["results"]
    assert (result["acc"], result["correct"]) == (pytest.approx(wanted["acc"]), wanted["correct"])
    analysis = json.loads((tmp_path / "o.json").read_text())
    assert len(analysis["correct"]) == wanted["correct"]
    assert {"question_id", "parsed_ans", "ground_truth", "question", "pred", "is_multimodal"} == set(
        analysis["incorrect"][0]
    )


@recorded
def test_textvqa_prints_what_the_original_did(capsys: pytest.CaptureFixture[str]) -> None:
    folder = RECORDED / "textvqa"
    words = ["--annotation-file", folder / "annotations.json", "--result-file", folder / "answers.jsonl"]
    assert eval_textvqa.main([str(word) for word in words]) == 0
    assert expected("textvqa", "stdout").endswith(capsys.readouterr().out)


@recorded
def test_pope_prints_the_figures_of_each_split(capsys: pytest.CaptureFixture[str]) -> None:
    folder = RECORDED / "pope"
    words = ["--annotation-dir", folder / "coco", "--question-file", folder / "questions.jsonl"]
    words += ["--result-file", folder / "answers.jsonl"]
    assert eval_pope.main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    figures = expected("pope", "small", "popular")
    assert f"F1 score: {figures['f1']}\n" in said
    assert f"\n{figures['TP']}\t{figures['FP']}\t{figures['TN']}\t{figures['FN']}\n" in said


@recorded
def test_conversions_are_those_of_the_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gqa, seed, mmvet = (RECORDED / name for name in ("gqa", "seed_bench", "mmvet"))
    target = tmp_path / "out"
    for main, words, wanted in (
        (
            convert_gqa_for_eval.main,
            ["--src", gqa / "answers.jsonl", "--dst", target],
            gqa / "predictions_expected.json",
        ),
        (
            convert_mmvet_for_eval.main,
            ["--src", mmvet / "answers.jsonl", "--dst", target],
            mmvet / "results_expected.json",
        ),
        (
            convert_seed_for_submission.main,
            [
                "--annotation-file", seed / "SEED-Bench.json", "--result-file", seed / "answers.jsonl",
                "--result-upload-file", target,
            ],
            seed / "upload_expected.jsonl",
        ),
    ):  # fmt: skip
        assert main([str(word) for word in words]) == 0
        assert target.read_text() == wanted.read_text()
    assert capsys.readouterr().out.endswith(expected("seed_bench", "small", "stdout"))


def answers(path: Path, *texts: str, **fields: Any) -> Path:
    write_jsonl(path, [{"question_id": number, "text": text, **fields} for number, text in enumerate(texts)])
    return path


def test_vqav2_covers_the_whole_split_and_counts_torn_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = [{"question_id": number, "image": "x.jpg", "text": f"Q{number}?"} for number in range(3)]
    write_jsonl(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", questions)
    path = answers(tmp_path / "answers" / "dev" / "m" / "merge.jsonl", "The Cat.", "Two")
    with path.open("a") as stream:
        stream.write('{"question_id": 2, "te')
    assert convert_vqav2_for_submission.main(["--dir", str(tmp_path), "--ckpt", "m", "--split", "dev"]) == 0
    assert "1 lines of" in capsys.readouterr().err
    written = json.loads((tmp_path / "answers_upload" / "dev" / "m.json").read_text())
    assert written == [
        {"question_id": 0, "answer": "cat"},
        {"question_id": 1, "answer": "2"},
        {"question_id": 2, "answer": ""},
    ]


def test_vizwiz_refuses_an_upload_that_lacks_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = [{"question_id": number, "image": f"{number}.jpg", "text": "Q?"} for number in range(2)]
    write_jsonl(tmp_path / "q.jsonl", questions)
    words = ["--annotation-file", tmp_path / "q.jsonl", "--result-upload-file", tmp_path / "up.json"]
    for texts, code in ((("A dog",), LlavaError.exit_code), (("A dog", "no"), 0)):
        given = [*words, "--result-file", answers(tmp_path / "a.jsonl", *texts)]
        assert convert_vizwiz_for_submission.main([str(word) for word in given]) == code
    assert "Traceback" not in capsys.readouterr().err
    assert json.loads((tmp_path / "up.json").read_text())[0] == {"image": "0.jpg", "answer": "dog"}


def test_mmbench_and_mme_write_where_their_scorers_look(tmp_path: Path) -> None:
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source"]
    columns += ["l2-category", "comment", "split"]
    row = ["0", "Which?", "", "x", "y", "", "", "A", "c", "", "s", "l", "", "dev"]
    (tmp_path / "t.tsv").write_text("\t".join(columns) + "\n" + "\t".join(row) + "\n")
    answers(tmp_path / "answers" / "m.jsonl", "A")
    words = ["--annotation-file", tmp_path / "t.tsv", "--result-dir", tmp_path / "answers"]
    words += ["--upload-dir", tmp_path / "up", "--experiment", "m"]
    assert convert_mmbench_for_submission.main([str(word) for word in words]) == 0
    assert (tmp_path / "up" / "m.xlsx").stat().st_size > 1000
    release = tmp_path / "MME" / "MME_Benchmark_release_version" / "color"
    release.mkdir(parents=True)
    (release / "a.txt").write_text(
        "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    )
    (release / "a.jpg").write_bytes(b"")
    asked = "\nAnswer the question using a single word or phrase."
    write_jsonl(
        tmp_path / "MME" / "answers" / "m.jsonl",
        [
            {"question_id": "color/a.jpg", "prompt": f"Is it {color}?{asked}", "text": text}
            for color, text in (("red", "Yes"), ("blue", "No\tno"))
        ],
    )
    assert convert_answer_to_mme.main(["--experiment", "m", "--dir", str(tmp_path / "MME")]) == 0
    lines = (tmp_path / "MME" / "eval_tool" / "answers" / "m" / "color.txt").read_text().splitlines()
    assert lines[0] == "a.txt\tIs it red? Please answer yes or no.\tYes\tYes"
    assert len(lines[1].split("\t")) == 4


def test_files_that_are_not_there_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "x.json", {})
    missing = str(tmp_path / "missing.jsonl")
    assert convert_gqa_for_eval.main(["--src", missing, "--dst", str(tmp_path / "o")]) == 2
    assert eval_textvqa.main(["--annotation-file", str(tmp_path / "x.json")]) == 2
    said = capsys.readouterr().err
    assert "does not exist" in said
    assert "there is nothing to score" in said
    assert "Traceback" not in said
