"""Answering benchmark questions against the original's loop, on the same model.

    python -m bench.eval [--model tiny|110M] [--engines torch openvino ...] [--questions N] [--rounds R]

The original asks one question after the other: the picture is opened, padded and resized for each, its
features are computed for each, and transformers' `generate` runs on a batch of one. Ours is what `llava eval`
does, with the same weights. The embedded model ends its answers itself; the random one of 110 million
parameters (bench.engine_models with LLaVA-1.5's 576 features a picture; weights stored in 16 bits) is stopped
after 3 tokens, the length of one word and its end. Patterns:

    questions about each picture as in GQA (12,578 about 398), POPE (8,910 about 500), MME (2), VizWiz (1)

Both run in turns; a ratio is that of the summed seconds of all rounds. Answers must be equal.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

import llava
from bench.engine_models import LANGUAGE, SHAPES, TOWER, VOCABULARY
from llava.demo import embedded_model_path
from llava.demo.drawing import draw
from llava.demo.questions import ask
from llava.demo.scenes import make_scene
from llava.engine.request import SamplingParams
from llava.engine.torch_engine import TorchEngine
from llava.eval.answer_file import AnswerFile
from llava.eval.answering import Asking, InProcess, run
from llava.eval.questions import Question
from llava.model.builder import new_model
from llava.model.saving import save_checkpoint
from llava.processing.pixels import clip_rules
from llava.processing.tokenizer import load_tokenizer

IMAGE_SIZE = 336
PATTERNS = {"GQA": 32, "POPE": 18, "MME": 2, "VizWiz": 1}
KINDS = (
    "presence",
    "count_all",
    "color",
    "shape",
    "count_shape",
    "position",
    "count_color",
    "icon",
    "number",
)
ENGINES: dict[str, dict[str, Any]] = {
    "torch": {"engine": "torch"},
    "openvino": {"engine": "openvino"},
    "openvino-bfloat16": {"engine": "openvino", "dtype": "bfloat16"},
}
"""Of ours. The original's loop computes in float32."""
MAX_NEW_TOKENS = {"tiny": 128, "110M": 3}


def make_questions(folder: Path, num_questions: int, per_picture: int) -> list[Question]:
    """Draw pictures of photo size and ask `per_picture` short questions about each."""
    questions: list[Question] = []
    seed = 500_000
    while len(questions) < num_questions:
        scene, rng = make_scene(seed, "held-out"), random.Random(seed)
        name = f"{seed}.jpg"
        draw(scene).image.resize((640, 480), Image.Resampling.BICUBIC).save(folder / name, quality=95)
        texts: dict[str, None] = {}
        for kind in KINDS * 20:
            qa = ask(scene, kind, rng)
            if qa is not None and len(texts) < per_picture:
                texts[qa.question] = None
        questions += [Question(len(questions) + n, text, name) for n, text in enumerate(texts)]
        seed += 1
    return questions[:num_questions]


def model_folder(name: str, work: Path) -> Path:
    """Return the checkpoint to be asked, made below `work` where it is not the embedded one."""
    if name == "tiny":
        return embedded_model_path()
    folder = work / name
    model = new_model(
        LANGUAGE | SHAPES[name], TOWER | {"image_size": IMAGE_SIZE}, image_size=IMAGE_SIZE, seed=0
    ).half()
    save_checkpoint(
        folder,
        model=model,
        tokenizer=load_tokenizer(VOCABULARY),
        rules=clip_rules(IMAGE_SIZE),
        template="vicuna_v1",
    )
    return folder


def original_loop(
    engine: TorchEngine, questions: list[Question], folder: Path, max_new_tokens: int
) -> list[str]:
    """Answer as the original's script does, with transformers' own `generate`."""
    model, processor = engine.model, engine.processor
    texts = []
    for question in questions:
        image = Image.open(folder / str(question.image)).convert("RGB")
        asking = Asking(folder, SamplingParams(max_new_tokens=max_new_tokens))
        ids = processor.encode(asking.request(question, [image]).turns)
        pixels = processor.image_processor.preprocess([image], aspect="pad")["pixel_values"]
        with torch.inference_mode():
            output = model.generate(
                inputs=torch.tensor([list(ids)]), images=pixels, do_sample=False, num_beams=1,
                max_new_tokens=max_new_tokens, use_cache=True,
            )  # fmt: skip
        text = engine.tokenizer.decode(output[0][len(ids) :], skip_special_tokens=True).strip()
        texts.append(text.removesuffix(engine.template.stop_strings[0]).strip())
    return texts


def ours(
    answerer: InProcess, questions: list[Question], folder: Path, output: Path, max_new_tokens: int
) -> list[str]:
    """Answer as `llava eval` does, journal and answers file included."""
    asking = Asking(folder, SamplingParams(max_new_tokens=max_new_tokens))
    file = AnswerFile(output, questions, {}, model_id="embedded")
    run(answerer, file, questions, asking)
    return [file.text(question) or "" for question in questions]


def measure(pattern: str, args: argparse.Namespace, checkpoint: Path) -> str:
    """Return the row of one pattern."""
    length, questions_each = MAX_NEW_TOKENS[args.model], args.questions
    seconds: dict[str, float] = {}
    num_equal = dict.fromkeys(args.engines, 0)
    with TemporaryDirectory() as name:
        folder = Path(name)
        questions = make_questions(folder, questions_each, PATTERNS[pattern])
        peer = llava.load(checkpoint, engine="torch", dtype="float32")
        original_loop(peer, questions[:2], folder, length)
        for number in range(args.rounds):
            start = time.perf_counter()
            theirs = original_loop(peer, questions, folder, length)
            seconds["original"] = seconds.get("original", 0.0) + time.perf_counter() - start
            for engine in args.engines:
                # A fresh engine each round: nothing is remembered from the round before.
                answerer = InProcess(llava.load(checkpoint, **ENGINES[engine]), {})
                warm = [Question("warm", "What is this?", None)]
                ours(answerer, warm, folder, folder / f"warm-{engine}-{number}.jsonl", length)
                start = time.perf_counter()
                own = ours(answerer, questions, folder, folder / f"{engine}-{number}.jsonl", length)
                seconds[engine] = seconds.get(engine, 0.0) + time.perf_counter() - start
                answerer.close()
                num_equal[engine] += sum(a == b for a, b in zip(theirs, own, strict=True))
        peer.close()
    total = questions_each * args.rounds
    cells = [pattern, str(PATTERNS[pattern]), f"{total / seconds['original']:.1f}"]
    for engine in args.engines:
        times = seconds["original"] / seconds[engine]
        cells += [f"{total / seconds[engine]:.1f}", f"{times:.2f}", f"{num_equal[engine]} of {total}"]
    return f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.eval", description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=tuple(MAX_NEW_TOKENS), default="tiny")
    parser.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=["torch"], help="ours")
    parser.add_argument("--questions", type=int, default=96, help="for each pattern (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    args = parser.parse_args(argv)
    columns = ["pattern", "questions a picture", "the original's loop, per s"]
    columns += [name for engine in args.engines for name in (f"{engine}, per s", "times", "equal")]
    sys.stdout.write(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n")
    with TemporaryDirectory() as name:
        checkpoint = model_folder(args.model, Path(name))
        for pattern in PATTERNS:
            sys.stdout.write(measure(pattern, args, checkpoint) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
