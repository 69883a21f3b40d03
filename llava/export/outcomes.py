"""What a model makes of a few questions: ids, picture features, logits, greedy text; ours and transformers'.

Used by `certify`, which compares two of them. The questions are about the embedded example pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.demo import example_images
from llava.engine.detokenize import Decoder, IncrementalDetokenizer
from llava.engine.request import Request, SamplingParams
from llava.engine.torch_engine import TorchEngine
from llava.processing.images import load_image
from llava.templates import PICTURE, Turn

if TYPE_CHECKING:
    from llava.model.builder import LoadedModel

MAX_NEW_TOKENS = 16


class Case(NamedTuple):
    """A question about some of the example pictures."""

    name: str
    question: str
    images: tuple[Path, ...] = ()

    @property
    def turns(self) -> list[Turn]:
        """The dialogue: each picture on a line of its own, then the question."""
        pictures = (PICTURE, "\n") * len(self.images)
        return [Turn("user", (*pictures, self.question))]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model makes of a case."""

    token_ids: list[int]
    """The prompt, a picture as -200 once for each feature."""
    features: torch.Tensor | None
    """float[n, N, C] of the pictures after the projector."""
    logits: torch.Tensor
    """float32[L, V] over the prompt."""
    text: str


def example_cases() -> list[Case]:
    """Return the questions that every export is tried with."""
    first, second = example_images()[:2]
    return [
        Case("text", "Who are you?"),
        Case("one picture", "What is shown in this picture?", (first,)),
        Case("two pictures", "What is the difference?", (first, second)),
    ]


@torch.inference_mode()
def our_outcomes(loaded: LoadedModel, cases: Sequence[Case]) -> list[Outcome]:
    """Run the cases through our own engine."""
    engine = TorchEngine(loaded)
    sampling = SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
    outcomes = []
    for case in cases:
        batch = engine.processor(case.turns, case.images).to(loaded.device)
        features = loaded.model.encode_images(batch["pixel_values"]) if case.images else None
        logits = loaded.model(**batch).logits[0]
        request = Request.of_question(case.question, case.images, sampling)
        outcomes.append(
            Outcome(
                token_ids=batch["input_ids"][0].tolist(),
                features=None if features is None else features.float().cpu(),
                logits=logits.float().cpu(),
                text=engine.generate([request])[0].text,
            )
        )
    return outcomes


@torch.inference_mode()
def plain_outcomes(
    folder: Path, cases: Sequence[Case], *, num_rows: int, dtype: torch.dtype, device: torch.device
) -> list[Outcome]:
    """Run the cases through plain transformers over `folder`; num_rows: rows of the source's vocabulary."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).to(device).eval()
    image_id = model.config.image_token_index
    outcomes = []
    for case in cases:
        content = [*({"type": "image"} for _ in case.images), {"type": "text", "text": case.question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        images = [load_image(str(path)) for path in case.images]
        batch = processor(text=text, images=images or None, return_tensors="pt", add_special_tokens=False).to(
            device
        )
        features = model.get_image_features(batch["pixel_values"].to(dtype)) if case.images else None
        ids = batch["input_ids"][0].tolist()
        answer = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)[0, len(ids) :]
        outcomes.append(
            Outcome(
                token_ids=[IMAGE_TOKEN_INDEX if token == image_id else token for token in ids],
                features=None
                if features is None
                else torch.stack(list(features.pooler_output)).float().cpu(),
                logits=model(**batch).logits[0, :, :num_rows].float().cpu(),
                text=_text(answer.tolist(), processor.tokenizer),
            )
        )
    return outcomes


def _text(token_ids: Sequence[int], tokenizer: Decoder) -> str:
    """Return the text of an answer, decoded step by step as the engine does.

    At once, a byte that belongs to no character would take the characters beside it with it.
    """
    detokenizer = IncrementalDetokenizer(tokenizer)
    return "".join(map(detokenizer.push, token_ids)) + detokenizer.flush()
