"""`python -m llava.eval.run_llava`: one question about one or several pictures; prints the answer.

The original's command and its function `eval_model`, which notebooks call. Pictures come first, each on a
line of its own, unless the query says where by `<image-placeholder>`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.command import OptionParser, run, say
from llava.constants import IMAGE_PLACEHOLDER
from llava.engine.model_options import (
    ModelOptions,
    add_engine_arguments,
    add_quantisation_arguments,
    device_map_of,
    device_present,
    load_engine,
)
from llava.engine.request import Request, SamplingParams
from llava.errors import PlaceholderError
from llava.processing.images import load_image
from llava.templates import PICTURE, Turn


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the query and return the exit code."""
    return run(lambda: _answer(sys.argv[1:] if argv is None else argv))


def _answer(argv: Sequence[str]) -> int:
    eval_model(_parser().parse_all(argv))
    return 0


def _parser() -> OptionParser:
    parser = OptionParser(prog="python -m llava.eval.run_llava", description=__doc__)
    parser.add_argument("--model-path", metavar="PATH", help="checkpoint (default: the embedded model)")
    parser.add_argument("--model-base", metavar="PATH", help="language model under a projector or LoRA")
    parser.add_argument("--image-file", required=True, help="picture(s): paths or URLs, with --sep between")
    parser.add_argument("--query", required=True, help="the question")
    parser.add_argument("--conv-mode", metavar="NAME", help="prompt template (default: the checkpoint's)")
    parser.add_argument("--sep", default=",", help="what separates pictures (%(default)r)")
    parser.add_argument("--temperature", type=float, default=0.2, help="0 is greedy (%(default)s)")
    parser.add_argument("--top_p", type=float, help="(default: all)")
    parser.add_argument("--num_beams", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="(%(default)s)")
    parser.add_argument(
        "--compat", action="store_true", help="decode and crop the picture as InternVL's script did"
    )
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best present)")
    add_quantisation_arguments(parser)
    add_engine_arguments(parser)
    return parser


def eval_model(args: argparse.Namespace) -> None:
    """Print the answer to `args.query` about `args.image_file`; other attributes have the command's defaults.

    Raises LlavaErrors.
    """
    defaults = vars(_parser().parse_args(["--image-file", "", "--query", ""]))
    # The original's callers pass a class with some attributes and not a Namespace.
    given = argparse.Namespace(**{name: getattr(args, name, value) for name, value in defaults.items()})
    images = [
        load_image(part, allow_url=True, as_original=given.compat)
        for part in given.image_file.split(given.sep)
    ]
    sampling = SamplingParams(
        temperature=given.temperature,
        top_p=given.top_p or 1.0,
        num_beams=given.num_beams,
        max_new_tokens=given.max_new_tokens,
    )
    options = ModelOptions(
        path=given.model_path,
        base=given.model_base,
        bits=given.bits,
        device=device_present(given.device),
        template=given.conv_mode,
        image_aspect="square" if given.compat else None,
        device_map=device_map_of(given.device),
        dtype=given.dtype,
        engine=given.engine,
    )
    request = request_of(given.query, len(images))
    engine = load_engine(options)
    try:
        say(engine.generate([Request(request, images=images, sampling=sampling)])[0].text)
    finally:
        engine.close()


def request_of(query: str, num_images: int) -> tuple[Turn, ...]:
    """Return the dialogue of one question; raises PlaceholderError when it places other pictures."""
    if IMAGE_PLACEHOLDER not in query:
        return tuple(Request.of_question(query, [b""] * num_images).turns)
    texts = query.split(IMAGE_PLACEHOLDER)
    if len(texts) - 1 != num_images:
        raise PlaceholderError(
            f"the query has {len(texts) - 1} {IMAGE_PLACEHOLDER} and there are {num_images} pictures",
            remedy="Give one picture for each.",
        )
    content = [item for text in texts for item in (PICTURE, text)][1:]
    return (Turn("user", tuple(item for item in content if item != "")),)


if __name__ == "__main__":
    sys.exit(main())
