"""The original's shell scripts, from a checkpoint to the figures, with the embedded model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava.demo import embedded_model_path, example_images
from llava.eval.questions import SHORT_ANSWER
from llava.files import read_jsonl, write_jsonl
from tests.eval.judge.fakes import in_turn, served

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts_internvl" / "eval"
NAMES = "vqav2 gqa vizwiz sqa textvqa pope mme mmbench mmbench_cn seed llavabench mmvet".split()  # noqa: SIM905

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="there is no shell")


def run(name: str, data: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of scripts_internvl/eval, or one that is named by its path, in the folder of the data."""
    path = ROOT / name if "/" in name else SCRIPTS / name
    own = {"DATA": str(data), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["sh", f"{path}.sh", *words],
        env=os.environ | own,
        cwd=data,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_script_is_there_and_wants_a_checkpoint(tmp_path: Path) -> None:
    assert sorted(path.stem for path in SCRIPTS.glob("*.sh")) == sorted([*NAMES, "common"])
    for name in NAMES:
        ended = run(name, tmp_path)
        assert (ended.returncode, ended.stderr.startswith("usage: ")) == (2, True), name


def test_pope_from_a_checkpoint_to_its_figures(tmp_path: Path) -> None:
    labels, questions = [], []
    for number, (path, label) in enumerate(zip(example_images()[:2], ("yes", "no"), strict=True)):
        text = "Is there a circle in the image?"
        labels.append({"question_id": number, "image": path.name, "text": text, "label": label})
        questions.append(
            {"question_id": number, "image": path.name, "text": text + SHORT_ANSWER, "category": "random"}
        )
        (tmp_path / "pope" / "val2014").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "pope" / "val2014" / path.name)
    write_jsonl(tmp_path / "pope" / "coco" / "coco_pope_random.json", labels)
    write_jsonl(tmp_path / "pope" / "llava_pope_test.jsonl", questions)
    model = embedded_model_path()
    ended = run("pope", tmp_path, str(model))
    assert ended.returncode == 0, ended.stderr
    assert "Category: random, # samples: 2\n" in ended.stdout
    answers = [record for _, record in read_jsonl(tmp_path / "pope" / "answers" / f"{model.name}.jsonl")]
    assert [record["question_id"] for record in answers] == [0, 1]


def test_llava_bench_from_a_checkpoint_to_its_summary(tmp_path: Path) -> None:
    folder = tmp_path / "llava-bench-in-the-wild"
    (folder / "images").mkdir(parents=True)
    picture, model = example_images()[0], embedded_model_path()
    shutil.copy(picture, folder / "images" / picture.name)
    question = {"question_id": 0, "image": picture.name, "text": "What is this?", "category": "conv"}
    write_jsonl(folder / "questions.jsonl", [question])
    write_jsonl(folder / "context.jsonl", [{"image": picture.name, "caption": "Shapes."}])
    write_jsonl(folder / "answers_gpt4.jsonl", [{"question_id": 0, "text": "Shapes.", "answer_id": "a"}])
    with served(in_turn("8 6\nWell.")) as url:
        ended = run("llavabench", tmp_path, str(model), JUDGE=f"--judge-url {url} --judge-model mine")
    assert ended.returncode == 0, ended.stderr
    assert f"{model.name}\nall 75.0 80.0 60.0\nllava_bench_conv 75.0 80.0 60.0\n" in ended.stdout


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """Return what puts a stand-in for Python in place: it notes its words, answers a chunk, fails on wish."""
    script = tmp_path / "python.sh"
    script.write_text(
        f'echo "$*" >>"{tmp_path}/called"\n'
        'case "$*" in *--answers-file*) ;; *) exit 0 ;; esac\n'
        "idx=0\n"
        "while [ $# -gt 0 ]; do\n"
        'case "$1" in --answers-file) out=$2 ;; --chunk-idx) idx=$2 ;; esac; shift; done\n'
        '[ "$idx" != "${FAIL:-none}" ] || exit 3\n'
        'mkdir -p "$(dirname "$out")"; echo "chunk $idx on $CUDA_VISIBLE_DEVICES" >"$out"\n'
    )
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec sh "{script}" "$@"\n')
    wrapper.chmod(0o755)
    return {"PYTHON": str(wrapper), "CUDA_VISIBLE_DEVICES": "4,5,7"}


MERGED = "chunk 0 on 4\nchunk 1 on 5\nchunk 2 on 7\n"


def test_chunks_are_merged_in_order_and_a_failed_one_fails_the_script(
    tmp_path: Path, stand_in: dict[str, str]
) -> None:
    ended = run("gqa", tmp_path, "/models/mine", **stand_in)
    assert ended.returncode == 0, ended.stderr
    merged = tmp_path / "gqa" / "answers" / "llava_gqa_testdev_balanced" / "mine" / "merge.jsonl"
    assert merged.read_text() == MERGED
    failed = run("gqa", tmp_path, "/models/mine", FAIL="1", **stand_in)
    assert failed.returncode == 1
    assert "a chunk failed" in failed.stderr


@pytest.mark.parametrize("name", NAMES)
def test_scripts_of_llava_1_5_run_those_of_the_same_name(
    tmp_path: Path, stand_in: dict[str, str], name: str
) -> None:
    ended = run(f"scripts/v1_5/eval/{name}", tmp_path, **stand_in)
    assert ended.returncode == 0, ended.stderr
    first, *_ = called = (tmp_path / "called").read_text().splitlines()
    assert "--model-path liuhaotian/llava-v1.5-13b " in first
    assert len(called) >= 2
    for line in called:
        module = line.removeprefix("-m ").split()[0]
        place = module.replace(".", "/") + ".py" if line.startswith("-m") else module
        assert (ROOT / place).exists(), line


def test_scienceqa_is_answered_in_one_script_and_gathered_in_another(
    tmp_path: Path, stand_in: dict[str, str]
) -> None:
    answers = tmp_path / "scienceqa" / "answers"
    early = run("scripts/sqa_eval_gather", tmp_path, "mine", **stand_in)
    assert early.returncode != 0
    failed = run("scripts/sqa_eval_batch", tmp_path, "mine", FAIL="2", **stand_in)
    assert failed.returncode == 1
    assert run("scripts/sqa_eval_gather", tmp_path, "mine", **stand_in).returncode != 0
    assert not (answers / "mine.jsonl").exists()
    for name in ("sqa_eval_batch", "sqa_eval_gather"):
        ended = run(f"scripts/{name}", tmp_path, "mine", **stand_in)
        assert ended.returncode == 0, ended.stderr
    assert (answers / "mine.jsonl").read_text() == MERGED
