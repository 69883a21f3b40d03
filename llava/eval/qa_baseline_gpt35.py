"""Answer questions without pictures with an endpoint's model, as a baseline.

The original's command of this name (it asked gpt-3.5-turbo). Replies are kept beside the output, and what has
none is told and asked again next time; --compat writes #ERROR# there, as the original did.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.command import EXIT_OK, EXIT_WITH_FAILURES, OptionParser, note, run
from llava.errors import RemoteError
from llava.eval.answers import answer_id_of
from llava.eval.judge.options import add_judge_arguments, open_judge
from llava.eval.judge.replies import JudgeRequest
from llava.eval.judge.reviewing import replies_path
from llava.eval.questions import Question, read_questions
from llava.files import write_jsonl

MODEL, MODEL_ID = "gpt-3.5-turbo", "gpt-3.5-turbo:20230327"
SYSTEM = "You are a helpful assistant."
ERROR = "#ERROR#"


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the questions and return the exit code."""
    return run(lambda: _answer(sys.argv[1:] if argv is None else argv))


def _answer(argv: Sequence[str]) -> int:
    parser = OptionParser(prog="python -m llava.eval.qa_baseline_gpt35", description=__doc__)
    parser.add_argument("-q", "--question", type=Path, required=True, metavar="FILE")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="answers")
    parser.add_argument("--max-tokens", type=int, default=1024, help="of an answer (%(default)s)")
    ours = parser.add_argument_group("ours (the judge is what answers)")
    add_judge_arguments(ours)
    ours.add_argument("--compat", action="store_true", help=f"write {ERROR} where there is no answer")
    args = parser.parse_all(argv)
    questions = sorted(
        read_questions(args.question), key=lambda question: (str(type(question.id)), question.id)
    )
    requests = {question.key: _request(question, args.max_tokens) for question in questions}
    judge = open_judge(args, default_model=MODEL, store=replies_path(args.output))
    model_id = MODEL_ID if judge.model == MODEL else judge.model
    records, num_failed = [], 0
    try:
        judge.announce(list(requests.values()))
        for question, text in judge.map(lambda own: judge.ask(requests[own.key]), questions):
            if isinstance(text, RemoteError):
                note(f"note: question {question.id}: {text}")
                num_failed += 1
                if not args.compat:
                    continue
            records.append(_record(question, ERROR if isinstance(text, RemoteError) else text, model_id))
    finally:
        judge.close()
    write_jsonl(args.output, records)
    return EXIT_WITH_FAILURES if num_failed else EXIT_OK


def _request(question: Question, max_tokens: int) -> JudgeRequest:
    """Return what is asked; the original left the temperature to the endpoint."""
    messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": question.text})
    return JudgeRequest(messages, None, max_tokens)


def _record(question: Question, text: str, model_id: str) -> dict[str, Any]:
    return {
        "answer_id": answer_id_of(question, model_id),
        "question_id": question.id,
        "model_id": model_id,
        "text": text,
    }


if __name__ == "__main__":
    sys.exit(main())
