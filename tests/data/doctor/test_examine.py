"""The doctor finds every planted fault, at its line, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.data.doctor.diagnosis import Diagnosis
from llava.data.doctor.examine import ExamineOptions, examine
from llava.data.doctor.findings import KINDS
from llava.data.doctor.fix import write_fixed
from llava.data.doctor.tokens import TokenChecker
from llava.demo import embedded_model_path
from llava.processing.tokenizer import load_tokenizer
from llava.templates import get_template
from tests.data.doctor.corpus import Corpus
from tests.data.doctor.planted import NUM_KINDS, plant


def checker(template: str = "v1", max_length: int = 1024) -> TokenChecker:
    return TokenChecker(load_tokenizer(embedded_model_path()), get_template(template), 64, max_length)


def found(diagnosis: Diagnosis) -> set[tuple[str, int]]:
    return {(finding.code, finding.line) for finding in diagnosis.findings}


def examined(corpus: Corpus, data: Path | None = None, *, num_workers: int = 0) -> Diagnosis:
    options = ExamineOptions(
        image_folder=str(corpus.pictures), against=(str(corpus.benchmark),), num_workers=num_workers
    )
    return examine(str(data or corpus.data), options, tokens=checker())


@pytest.fixture(scope="module", params=[1, 2])
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return plant(tmp_path_factory.mktemp(f"corpus{request.param}"), seed=request.param)


@pytest.fixture(scope="module")
def diagnosis(corpus: Corpus) -> Diagnosis:
    return examined(corpus)


def test_at_least_sixty_kinds_of_fault_are_planted(corpus: Corpus) -> None:
    assert NUM_KINDS >= 60
    assert {code for code, _ in corpus.expected} <= set(KINDS)
    assert len({code for code, _ in corpus.expected}) == NUM_KINDS


def test_every_planted_fault_is_found_at_its_line(corpus: Corpus, diagnosis: Diagnosis) -> None:
    assert sorted(corpus.expected - found(diagnosis)) == []


def test_nothing_is_found_that_was_not_planted(corpus: Corpus, diagnosis: Diagnosis) -> None:
    assert sorted(found(diagnosis) - corpus.expected) == []


def test_counts_are_those_of_the_findings(diagnosis: Diagnosis) -> None:
    listed = list(diagnosis.findings)
    assert sum(diagnosis.findings.counts.values()) == len(listed)
    assert diagnosis.findings.num("error") == sum(f.kind.severity == "error" for f in listed)


def test_a_cleaned_copy_has_no_errors_and_keeps_every_sound_sample(
    corpus: Corpus, diagnosis: Diagnosis, tmp_path: Path
) -> None:
    target = tmp_path / "clean.json"
    fixed = write_fixed(diagnosis, target, tokens=checker())
    again = examined(corpus, target)
    assert [f for f in again.findings if f.kind.severity == "error"] == []
    kept = {json.dumps(raw, sort_keys=True) for raw in json.loads(target.read_text(encoding="utf-8"))}
    assert all(json.dumps(raw, sort_keys=True) in kept for raw in corpus.sound)
    assert again.num_samples == fixed.num_kept == len(kept)
    changes = [json.loads(line) for line in fixed.changes.read_text(encoding="utf-8").splitlines()]
    dropped = {change["where"] for change in changes if change["action"] == "dropped"}
    assert fixed.num_kept + len(dropped) == len(corpus.data.read_text("utf-8", "replace").split("\n")) - 3


def test_workers_find_the_same_as_one_process(corpus: Corpus, diagnosis: Diagnosis) -> None:
    assert found(examined(corpus, num_workers=2)) == found(diagnosis)
