"""Talk about a picture.

  llava chat --image photo.jpg                      interactive
  llava chat --image photo.jpg -p "How many dogs?"  one answer on stdout (also: echo "..." | llava chat ...)
  llava chat --input FOLDER --output answers.jsonl -p "What is shown?"
  llava chat --input questions.jsonl --output answers.jsonl
                                                    many answers; run again, it goes on where it ended

Without --model the embedded model answers. Exit code 1: some questions of a batch failed; they are counted,
and have an error record in the output.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from llava.command import EXIT_INTERRUPTED, EXIT_OK, EXIT_WITH_FAILURES, note, say
from llava.engine.model_options import (
    ModelOptions,
    add_engine_arguments,
    add_quantisation_arguments,
    engine_settings,
    load_engine,
)
from llava.engine.request import SamplingParams
from llava.errors import UsageError
from llava.serve.answering import check_text, printable, rendered_prompt, speed_line, stream_answer
from llava.serve.session import Picture, Session, open_picture

if TYPE_CHECKING:
    from llava.serve.answering import Engine, Outcome

DEFAULT_QUESTION = "Describe the picture."
DEFAULT_BATCH_SIZE = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `llava chat`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_question_arguments(parser)
    _add_model_arguments(parser)
    _add_sampling_arguments(parser)


def _add_question_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("question")
    group.add_argument(
        "--image", "--image-file", nargs="+", action="extend", default=[], metavar="PATH",
        help="picture(s) to talk about: paths or URLs (default with the embedded model: an example picture)",
    )  # fmt: skip
    group.add_argument("-p", "--prompt", help="ask this, print the answer, and end")
    group.add_argument("-i", "--interactive", action="store_true", help="chat line by line even over a pipe")
    group.add_argument(
        "--input", type=Path, metavar="PATH", help="a folder of pictures, or a JSONL of questions"
    )
    group.add_argument("--output", type=Path, metavar="FILE", help="JSONL for the answers to --input")
    group.add_argument(
        "--image-folder", type=Path, help="where the paths in a JSONL start (default: its folder)"
    )
    group.add_argument(
        "--allow-urls", action="store_true", help="fetch pictures that a JSONL or transcript names by URL"
    )
    group.add_argument(
        "--batch-size",
        type=int,
        default=DEFAULT_BATCH_SIZE,
        help="questions of --input at a time (%(default)s)",
    )
    group.add_argument(
        "--json", action="store_true", help="print the answer (or the result of --input) as JSON"
    )
    group.add_argument("--speed", action="store_true", help="print the speed of each answer")
    group.add_argument(
        "--debug", action="store_true", help="print the prompt as the model gets it, and log more"
    )


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", "--model-path", metavar="PATH", help="checkpoint folder (default: the embedded model)"
    )
    group.add_argument(
        "--model-base", "--base", metavar="PATH", help="language model under a projector or LoRA checkpoint"
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best present)")
    group.add_argument(
        "--device-map", choices=("auto", "balanced"), help="spread the model's blocks over the GPUs"
    )
    add_quantisation_arguments(group)
    add_engine_arguments(group)
    group.add_argument(
        "--template", "--conv-mode", metavar="NAME", help="prompt template, over the checkpoint's"
    )
    group.add_argument("--image-size", type=int, metavar="N", help="input size of the vision tower in pixels")
    group.add_argument(
        "--image-aspect-ratio",
        choices=("pad", "square"),
        help="over the checkpoint's rule for pictures that are not square",
    )


def _add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    defaults = SamplingParams()
    group.add_argument(
        "--temperature", type=float, default=defaults.temperature, help="0 is greedy (%(default)s)"
    )
    group.add_argument("--top-p", type=float, default=defaults.top_p, help="(%(default)s)")
    group.add_argument("--top-k", type=int, default=defaults.top_k, help="0 is all (%(default)s)")
    group.add_argument(
        "--repetition-penalty", type=float, default=defaults.repetition_penalty, help="(%(default)s)"
    )
    group.add_argument("--max-new-tokens", type=int, default=defaults.max_new_tokens, help="(%(default)s)")
    group.add_argument("--seed", type=int, help="makes sampling repeatable")


def run(args: argparse.Namespace) -> int:
    """Chat, answer one question, or answer a batch, as the options say."""
    _check_combination(args)
    options = ModelOptions(
        path=args.model,
        base=args.model_base,
        bits=args.bits,
        device=args.device,
        dtype=args.dtype,
        template=args.template,
        image_size=args.image_size,
        image_aspect=args.image_aspect_ratio,
        device_map=args.device_map,
        engine=args.engine,
    )
    sampling = SamplingParams(
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        repetition_penalty=args.repetition_penalty,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
    )
    if args.input is not None:
        return _run_batch(args, options, sampling)
    session = Session(sampling=sampling, waiting=_pictures(args.image, options))
    if args.interactive or (args.prompt is None and _is_terminal(sys.stdin)):
        return chat(
            load_engine(options),
            session,
            model=options.name,
            shows_speed=args.speed,
            shows_debug=args.debug,
            allow_urls_in_files=args.allow_urls,
        )
    question = _question(args.prompt)
    return _answer_once(load_engine(options), session, question, args=args, model=options.name)


def chat(
    engine: Engine,
    session: Session,
    *,
    model: str,
    shows_speed: bool = False,
    shows_debug: bool = False,
    allow_urls_in_files: bool = False,
) -> int:
    """Talk on this process's terminal (or pipe) until the person leaves; returns the exit code."""
    from llava.serve.terminal import Terminal

    is_interactive = _is_terminal(sys.stdin) and _is_terminal(sys.stdout)
    if is_interactive:
        _enable_line_editing()
    terminal = Terminal(
        engine=engine,
        session=session,
        model=model,
        open_picture=lambda source: open_picture(source, allow_url=True, on_notice=_notice),
        open_saved_picture=lambda source: open_picture(
            source, allow_url=allow_urls_in_files, on_notice=_notice
        ),
        read_line=_read_line,
        is_interactive=is_interactive,
        shows_speed=shows_speed,
        shows_debug=shows_debug,
    )
    return terminal.run()


def _check_combination(args: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go together."""
    if (args.input is None) != (args.output is None):
        given, wanted = ("--input", "--output") if args.output is None else ("--output", "--input")
        raise UsageError(f"{given} without {wanted}", remedy=f"Give {wanted} too.")
    if args.input is not None and (args.image or args.interactive):
        raise UsageError("--input goes with neither --image nor --interactive", remedy="Leave one out.")
    if args.interactive and args.prompt is not None:
        raise UsageError("--interactive does not go with -p", remedy="Leave one out.")
    if args.input is None and args.image_folder is not None:
        raise UsageError("--image-folder is for --input", remedy="Give the whole path to --image.")
    if args.prompt is not None and not args.prompt.strip():
        raise UsageError("the question of -p is empty", remedy="Write one, or leave -p out.")
    if args.prompt is not None:
        check_text(args.prompt)
    if args.batch_size < 1:
        raise UsageError(f"--batch-size is {args.batch_size}", remedy="Give 1 or more.")
    is_chat = args.interactive or (args.prompt is None and args.input is None and _is_terminal(sys.stdin))
    if args.json and is_chat:
        raise UsageError("--json needs a question", remedy="Give one with -p, or use /save in the chat.")


def _pictures(sources: list[str], options: ModelOptions) -> list[Picture]:
    if not sources and options.path is None:
        from llava.demo import example_images

        sources = [str(example_images()[0])]
        note(f"no --image given: using the example picture {sources[0]}")
    return [open_picture(source, allow_url=True, on_notice=_notice) for source in sources]


def _question(prompt: str | None) -> str:
    """Return what to ask once: the given prompt, else what is piped in, else to describe the picture."""
    if prompt is None:
        try:
            prompt = sys.stdin.read() if sys.stdin is not None else ""
        except UnicodeDecodeError:
            raise UsageError("the question on stdin is not UTF-8", remedy="Mend its encoding.") from None
    question = prompt.strip() or DEFAULT_QUESTION
    check_text(question)
    return question


def _answer_once(
    engine: Engine, session: Session, question: str, *, args: argparse.Namespace, model: str
) -> int:
    request = session.request(question)
    if args.debug:
        note(f"prompt: {rendered_prompt(engine, request)!r}")
    shows_pieces = not args.json
    outcome = stream_answer(engine, request, write=_write_piece if shows_pieces else _write_nothing)
    if args.json and outcome.answer is not None:
        say(json.dumps(_answer_record(model, session, question, outcome), ensure_ascii=False))
    elif shows_pieces:
        say()
    if args.speed and outcome.answer is not None:
        note(speed_line(outcome.answer))
    return EXIT_INTERRUPTED if outcome.is_stopped else EXIT_OK


def _answer_record(model: str, session: Session, question: str, outcome: Outcome) -> dict[str, object]:
    answer = outcome.answer
    assert answer is not None, "a record of no answer"
    return {
        "model": model,
        "prompt": question,
        "images": [picture.source for picture in session.pictures],
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "num_prompt_tokens": answer.num_prompt_tokens,
        "num_new_tokens": answer.num_new_tokens,
        "first_token_s": round(answer.timing.first_token_s, 4),
        "total_s": round(answer.timing.total_s, 4),
    }


def _run_batch(args: argparse.Namespace, options: ModelOptions, sampling: SamplingParams) -> int:
    from tqdm import tqdm

    from llava.serve.batch import AnswerFile, read_jobs, run_batch

    jobs = read_jobs(args.input, prompt=args.prompt, image_folder=args.image_folder)
    engine = load_engine(options)
    output = AnswerFile(args.output, engine_settings(engine, options) | {"sampling": sampling.to_dict()})
    tally = run_batch(
        engine,
        jobs,
        output,
        sampling=sampling,
        open_picture=lambda source: open_picture(source, allow_url=args.allow_urls, on_notice=tqdm.write),
        batch_size=args.batch_size,
    )
    note(tally.line())
    if args.json:
        say(json.dumps(tally.record()))
    if tally.is_interrupted:
        return EXIT_INTERRUPTED
    return EXIT_WITH_FAILURES if tally.failed else EXIT_OK


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is there and a person is at its other end."""
    return stream is not None and stream.isatty()


def _read_line(prompt: str) -> str:
    try:
        return input(prompt)
    except UnicodeDecodeError:
        raise UsageError("the input is not UTF-8", remedy="Mend its encoding.") from None


def _enable_line_editing() -> None:
    """Give the prompt a history and cursor keys where the platform has readline."""
    with suppress(ImportError):
        import readline

        # Complete file names, as /image wants them; by default a slash would begin a new word.
        readline.set_completer_delims(" \t\n'\"")
        readline.parse_and_bind("tab: complete")


def _notice(text: str) -> None:
    note(f"note: {text}")


def _write_piece(text: str) -> None:
    say(printable(text) if _is_terminal(sys.stdout) else text, end="")


def _write_nothing(_: str) -> None:
    """Swallow the pieces; the whole answer is printed at the end."""
