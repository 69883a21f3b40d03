"""`python -m llava.eval.model_qa`: questions without pictures.

The original's command of this name: its options and records (without the prompt), temperature 0.7, answers of
up to 1024 tokens. The template is the checkpoint's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OptionParser, run
from llava.engine.request import SamplingParams
from llava.eval.answering import Asking, open_answerer
from llava.eval.generation import answer_file
from llava.eval.options import add_answering_arguments, devices_of, model_id_of, model_options_of
from llava.eval.questions import read_questions


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the questions and return the exit code."""
    return run(lambda: _answer(sys.argv[1:] if argv is None else argv))


def _answer(argv: Sequence[str]) -> int:
    parser = OptionParser(prog="python -m llava.eval.model_qa", description=__doc__)
    parser.add_argument("--model-name", metavar="PATH", help="checkpoint (default: the embedded model)")
    parser.add_argument(
        "--question-file", type=Path, default=Path("tables/question.jsonl"), help="(%(default)s)"
    )
    parser.add_argument("--answers-file", type=Path, default=Path("answer.jsonl"), help="(%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (%(default)s)")
    parser.set_defaults(model_base=None)
    add_answering_arguments(parser)
    args = parser.parse_all(argv)
    questions = read_questions(args.question_file)
    sampling = SamplingParams(temperature=args.temperature, max_new_tokens=1024)
    answerer = open_answerer(model_options_of(args, path=args.model_name, template=None), devices_of(args))
    try:
        return answer_file(
            answerer,
            questions,
            args.answers_file,
            Asking(Path(), sampling, batch_size=args.batch_size, seed=args.seed),
            model_id=model_id_of(args.model_name),
            num_checked=args.check_batching,
            has_prompt=False,
        )
    finally:
        answerer.close()


if __name__ == "__main__":
    sys.exit(main())
