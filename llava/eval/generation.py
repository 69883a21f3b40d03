"""What the original's generation commands share: their options, and the way from them to an answers file.

model_vqa, model_vqa_loader, model_vqa_science and model_vqa_mmbench differ in how they read questions, in the
longest answer and in a few defaults. Beside the original's options stand ours, the same for all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava.command import EXIT_INTERRUPTED, EXIT_OK, EXIT_WITH_FAILURES, OptionParser, note
from llava.engine.model_options import ModelOptions
from llava.engine.request import SamplingParams
from llava.errors import UsageError
from llava.eval.answer_file import AnswerFile
from llava.eval.answering import (
    Answerer,
    Asking,
    changed_when_alone,
    chunk,
    open_answerer,
    run,
)
from llava.eval.options import add_answering_arguments, devices_of, model_id_of, model_options_of
from llava.eval.questions import Question
from llava.files import write_text

MAX_CHANGED_SHOWN = 5

ReadQuestions = Callable[[argparse.Namespace], list[Question]]


@dataclass(frozen=True)
class Command:
    """One of the original's commands."""

    name: str
    """Its module in llava.eval."""
    description: str
    read: ReadQuestions
    conv_mode: str = "llava_v1"
    question_file: str = "tables/question.jsonl"
    max_new_tokens: int = 1024
    samples_by_nucleus: bool = True
    """Whether it has --top_p and --num_beams."""
    adds_tags: bool = False
    """Whether "plain" in the model's name makes the template one with picture tags."""
    never_padded: bool = False
    """Whether the original crops pictures whatever the checkpoint says."""

    def parser(self) -> OptionParser:
        """Return the parser of its options."""
        parser = OptionParser(prog=f"python -m llava.eval.{self.name}", description=self.description)
        parser.add_argument("--model-path", metavar="PATH", help="checkpoint (default: the embedded model)")
        parser.add_argument("--model-base", metavar="PATH", help="language model under a projector or LoRA")
        parser.add_argument("--image-folder", type=Path, default=Path(), help="where pictures are")
        parser.add_argument(
            "--question-file", type=Path, default=Path(self.question_file), help="(%(default)s)"
        )
        parser.add_argument("--answers-file", type=Path, default=Path("answer.jsonl"), help="(%(default)s)")
        parser.add_argument("--conv-mode", default=self.conv_mode, help="prompt template (%(default)s)")
        parser.add_argument("--num-chunks", type=int, default=1, help="cut the questions into so many parts")
        parser.add_argument("--chunk-idx", type=int, default=0, help="and answer this one, from 0")
        parser.add_argument("--temperature", type=float, default=0.2, help="0 is greedy (%(default)s)")
        parser.add_argument("--max_new_tokens", type=int, default=self.max_new_tokens, help="(%(default)s)")
        if self.samples_by_nucleus:
            parser.add_argument("--top_p", type=float, help="(default: all)")
            parser.add_argument("--num_beams", type=int, default=1, help="(%(default)s)")
        parser.add_argument(
            "--compat",
            action="store_true",
            help=f"decode{' and crop' if self.never_padded else ''} pictures as the original's script did",
        )
        add_answering_arguments(parser)
        return parser

    def run(self, argv: Sequence[str], *, add_arguments: Callable[[OptionParser], None] | None = None) -> int:
        """Parse `argv` and answer; returns the exit code."""
        parser = self.parser()
        if add_arguments is not None:
            add_arguments(parser)
        args = parser.parse_all(argv)
        questions = self.chunk(args)
        if not questions:
            # So that what joins the chunks finds every file that it looks for.
            note(f"chunk {args.chunk_idx} of {args.num_chunks} is empty")
            write_text(args.answers_file, "")
            return EXIT_OK
        answerer = open_answerer(self.model_options(args), devices_of(args))
        try:
            return answer_file(
                answerer,
                questions,
                args.answers_file,
                self.asking(args),
                model_id=model_id_of(args.model_path),
                num_checked=args.check_batching,
            )
        finally:
            answerer.close()

    def chunk(self, args: argparse.Namespace) -> list[Question]:
        """Read the questions and return those of the chosen part."""
        if args.num_chunks < 1 or not 0 <= args.chunk_idx < args.num_chunks:
            raise UsageError(
                f"chunk {args.chunk_idx} of {args.num_chunks} does not exist",
                remedy="--chunk-idx counts from 0 to --num-chunks less one.",
            )
        return chunk(self.read(args), args.num_chunks, args.chunk_idx)

    def asking(self, args: argparse.Namespace) -> Asking:
        """Return how the questions are asked."""
        sampling = SamplingParams(
            temperature=args.temperature,
            top_p=getattr(args, "top_p", None) or 1.0,
            num_beams=getattr(args, "num_beams", 1),
            max_new_tokens=args.max_new_tokens,
        )
        return Asking(
            args.image_folder,
            sampling,
            batch_size=args.batch_size,
            seed=args.seed,
            plain_pictures=args.compat,
        )

    def model_options(self, args: argparse.Namespace) -> ModelOptions:
        """Return which model is asked."""
        template = args.conv_mode
        if self.adds_tags and wants_tags(model_id_of(args.model_path), template):
            template += "_mmtag"
            note(f"note: a model of plain pretraining: using the template {template}")
        aspect: Literal["square"] | None = "square" if self.never_padded and args.compat else None
        return model_options_of(args, path=args.model_path, template=template, aspect=aspect)


def wants_tags(model_id: str, template: str) -> bool:
    """Whether the original would take the template with picture tags for a model of this name."""
    return "plain" in model_id and "finetune" not in model_id.lower() and "mmtag" not in template.lower()


def answer_file(
    answerer: Answerer,
    questions: Sequence[Question],
    path: Path,
    asking: Asking,
    *,
    model_id: str,
    num_checked: int = 0,
    has_prompt: bool = True,
) -> int:
    """Answer the questions into a file, say what they came to, and return the exit code."""
    settings = {**answerer.settings, **asking.settings()}
    output = AnswerFile(path, questions, settings, model_id=model_id, has_prompt=has_prompt)
    tally = run(answerer, output, questions, asking)
    note(tally.line())
    if tally.is_interrupted:
        return EXIT_INTERRUPTED
    if num_checked:
        changed = changed_when_alone(answerer, output, questions, asking, num_checked)
        note(f"asked again one by one: {len(changed)} of {min(num_checked, len(questions))} answers change")
        for question, before, alone in changed[:MAX_CHANGED_SHOWN]:
            note(f"  {question.id}: {before!r}, alone {alone!r}")
    return EXIT_WITH_FAILURES if tally.failed else EXIT_OK
