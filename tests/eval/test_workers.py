"""Several processes: a block of one that dies is taken over, and what kills all of them ends the run."""

from __future__ import annotations

from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from llava.engine.each import Outcome
from llava.engine.model_options import ModelOptions
from llava.engine.request import SamplingParams
from llava.errors import CheckpointError, EngineError, UsageError
from llava.eval.answering import Asking, blocks_of
from llava.eval.questions import Question
from llava.eval.workers import Workers
from tests.eval.fakes import answer_of

ASKING = Asking(Path(), SamplingParams())


class FakeProcess:
    """A worker that is a thread: it answers `lives` questions and is gone then; None lives on."""

    exitcode = -9

    def __init__(self, connection: Connection, lives: int | None, settings: dict[str, object]) -> None:
        self._connection, self._lives, self._settings = connection, lives, settings
        self.answered: list[Any] = []
        self._thread = Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _work(self) -> None:
        try:
            self._connection.send(self._settings)
            while True:
                block, _ = self._connection.recv()
                for place, question in enumerate(block):
                    if self._lives is not None and len(self.answered) >= self._lives:
                        self._connection.close()
                        return
                    self.answered.append(question.id)
                    self._connection.send((place, answer_of(f"answer {question.id}")))
        except (EOFError, OSError):
            return


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """How long each worker that is started lives; settings of all are equal."""
    plan: list[int | None] = []

    class Context:
        def __init__(self) -> None:
            self.theirs: Connection | None = None

        def Pipe(self) -> tuple[Connection, Any]:
            ours, self.theirs = Pipe()

            class KeptOpen:
                """A thread has the other end: closing it here, as for a process, would close it there too."""

                def close(self) -> None:
                    return

            return ours, KeptOpen()

        def Process(self, **_: object) -> FakeProcess:
            assert self.theirs is not None
            return FakeProcess(self.theirs, plan.pop(0), {"model": "fake"})

    monkeypatch.setattr("llava.eval.workers.multiprocessing.get_context", lambda _: Context())
    return plan


def answers_by(num_workers: int, num_questions: int) -> dict[Any, str]:
    questions = [Question(id=number, text="?") for number in range(num_questions)]
    answers: dict[Any, str] = {}

    def keep(question: Question, outcome: Outcome) -> None:
        assert question.id not in answers, "answered twice"
        answers[question.id] = outcome.text  # type: ignore[union-attr]

    with Workers(None, [None] * num_workers) as pool:  # type: ignore[arg-type]
        pool.answer_all(blocks_of(questions, 4), ASKING, keep)
    return answers


@pytest.mark.parametrize("num_questions", [0, 1, 3, 40])
def test_any_number_of_questions_fits_any_number_of_workers(
    lives: list[int | None], num_questions: int
) -> None:
    lives += [None] * 7
    assert sorted(answers_by(7, num_questions)) == list(range(num_questions))


def test_what_a_dead_worker_leaves_is_taken_over(
    lives: list[int | None], capsys: pytest.CaptureFixture[str]
) -> None:
    lives += [None, 2, 0]
    answers = answers_by(3, 40)
    assert answers == {number: f"answer {number}" for number in range(40)}
    assert "a worker died" in capsys.readouterr().err


def test_the_run_ends_when_no_worker_is_left(lives: list[int | None]) -> None:
    lives += [3, 1]
    with pytest.raises(EngineError, match="workers died on the questions"):
        answers_by(2, 40)


def test_what_is_wrong_with_the_model_is_said_as_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty"):
        Workers(ModelOptions(path=str(tmp_path / "empty")), [None])


def test_workers_that_run_otherwise_are_refused(
    lives: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lives += [None, None]
    names = iter(("torch float16 on cuda", "torch float32 on cpu"))
    original = FakeProcess.__init__
    monkeypatch.setattr(
        FakeProcess, "__init__", lambda self, c, n, s: original(self, c, n, s | {"engine": next(names)})
    )
    with pytest.raises(UsageError, match="the workers differ: engine"):
        answers_by(2, 4)
