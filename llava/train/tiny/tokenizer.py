"""The embedded model's tokenizer: LLaMA's kind of sentencepiece BPE, trained on the generated text.

First step of the recipe in `recipe.py`. Words of questions, answers and of the prompt become single pieces;
English text from Python's own help gives what people type a chance of short encodings, bytes catch the rest.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

import sentencepiece

from llava.demo.questions import all_texts, caption, short_answers
from llava.demo.scenes import make_scene
from llava.templates import get_template

TEMPLATE = "vicuna_v1"
CONTEXT_LENGTH = 1024


def train_tokenizer(folder: Path, *, vocab_size: int = 1024) -> None:
    """Write tokenizer.model and tokenizer_config.json in LLaMA's layout into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_texts(),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.99995,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
        "model_max_length": CONTEXT_LENGTH,
        "padding_side": "right",
        "tokenizer_class": "LlamaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _texts() -> Iterator[str]:
    template = get_template(TEMPLATE)
    for _ in range(1000):
        yield template.system
        yield f"{template.roles[0]}: {template.roles[1]}:"
    for text in all_texts():
        # After the picture a question begins behind a line break, without a space: as behind the colon here.
        yield from (text, text.lower(), f":{text}", f":{text.lower()}")
    for answer in (*short_answers(), "Hello", "Hi", "hello", "hi"):
        yield from [answer] * 60
    for seed in range(1000):
        yield caption(make_scene(seed, "train"))
    rng = random.Random(0)
    words = re.findall(r"[A-Za-z][a-z]*[.,?!]?", " ".join(topics.topics.values()))
    for _ in range(1500):
        start = rng.randrange(len(words) - 20)
        yield " ".join(words[start : start + 20])
