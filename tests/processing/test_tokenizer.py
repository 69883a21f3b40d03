"""Token ids: the original's, from every file a checkpoint may carry, and content that stays content."""

from __future__ import annotations

import json
import shutil
import struct
import time
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import ConfigError, LlavaError, TokenizerError, UsageError
from llava.processing.sentencepiece_model import WORD_START, read_sentencepiece
from llava.processing.tokenizer import encode_spans, load_tokenizer, save_tokenizer, tokenizer_image_token
from llava.templates import PICTURE, TEMPLATES, Span, Turn, content_of, get_template
from tests.processing.text_cases import LABELS, LLAMA, lines, tokenizer_of

ALL = (*LLAMA, "tokenizer_neox")
NEVER_CONTROL = "<image> </s> <s> <unk> [INST] ### USER: ASSISTANT: <|im_start|> <|im_end|> <|endoftext|>"
# Surrogates cannot be encoded; "<" could spell a control token.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=40)
PIECES = st.sampled_from([" ", "  ", "\n", "a", "the", "▁", "图", "🐱", "é", ".", "\t"])
SPACED = st.lists(PIECES, max_size=20).map("".join)


@pytest.mark.parametrize("row", lines(LABELS / "tokenizer_image_token.jsonl"), ids=lambda row: row["prompt"])
def test_a_prompt_gets_the_recorded_ids(row: dict) -> None:
    is_internvl = row["source"] == "internvl"
    tokenizer = tokenizer_of(row["tokenizer"])
    ids = tokenizer_image_token(row["prompt"], tokenizer, fills_empty_chunks=is_internvl)
    assert ids == row["input_ids"]


def test_ids_come_as_a_tensor_where_asked_for() -> None:
    tokenizer = tokenizer_of(LLAMA[0])
    ids = tokenizer_image_token("<image>", tokenizer, return_tensors="pt")
    assert ids.dtype == torch.long
    assert ids.tolist() == [1, -200]
    assert tokenizer_image_token("<image>", tokenizer, -7) == [1, -7]
    with pytest.raises(UsageError, match="'np'"):
        tokenizer_image_token("x", tokenizer, return_tensors="np")  # type: ignore[call-overload]


@cache
def sentencepiece_of(name: str) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(LABELS / name / "tokenizer.model"))


@pytest.mark.parametrize("name", LLAMA)
@settings(deadline=None)
@given(text=TEXTS | SPACED)
def test_plain_text_gets_sentencepieces_own_ids(name: str, text: str) -> None:
    assert tokenizer_of(name)(text).input_ids == [1, *sentencepiece_of(name).encode(text)]


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None)
@given(parts=st.lists(TEXTS | SPACED, min_size=1, max_size=5))
def test_spans_get_the_ids_of_the_joined_text(name: str, parts: list[str]) -> None:
    tokenizer = tokenizer_of(name)
    prompt = "<image>".join(parts)
    spans = []
    for index, part in enumerate(parts):
        if index:
            spans.append(Span("<image>", "image"))
        spans += [Span(part[:3], "text"), Span(part[3:], "control", True)]
    encoded = encode_spans(spans, tokenizer)
    assert encoded.input_ids == tokenizer_image_token(prompt, tokenizer, fills_empty_chunks=False)
    assert len(encoded.is_trained) == len(encoded.input_ids)


@pytest.mark.parametrize("name", ALL)
def test_content_that_spells_control_tokens_stays_content(name: str) -> None:
    tokenizer = tokenizer_of(name)
    spans = get_template("vicuna_v1").render([Turn("user", (NEVER_CONTROL,))], add_generation_prompt=True)
    ids = encode_spans(spans, tokenizer).input_ids
    body = ids[1:] if ids[0] == 1 else ids
    assert not set(body) & {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, IMAGE_TOKEN_INDEX}
    assert NEVER_CONTROL in tokenizer.decode(body)


def test_a_template_writes_control_tokens_and_pictures() -> None:
    tokenizer = tokenizer_of(LLAMA[0])
    turns = [Turn("user", (PICTURE, "\nhi")), Turn("assistant", ("yo",))]
    encoded = encode_spans(get_template("vicuna_v1").render(turns), tokenizer)
    assert encoded.input_ids[0] == 1
    assert encoded.input_ids[-1] == 2
    assert encoded.input_ids.count(IMAGE_TOKEN_INDEX) == 1
    trained = [t for t, flag in zip(encoded.input_ids, encoded.is_trained, strict=True) if flag]
    assert tokenizer.decode(trained) == "yo</s>"


def test_half_a_surrogate_pair_is_replaced_and_not_an_error() -> None:
    tokenizer = tokenizer_of(LLAMA[0])
    assert encode_spans([Span("a\ud83d", "text")], tokenizer) == encode_spans([Span("a?", "text")], tokenizer)


def test_text_in_many_parts_is_the_text_and_takes_no_longer() -> None:
    tokenizer = tokenizer_of(LLAMA[0])
    begin = time.process_time()
    parts = encode_spans(
        [Span("a b", "text", is_trained=number % 2 == 0) for number in range(60_000)], tokenizer
    )
    # One part after the other, each copied what there was: these took 10 s, now less than one.
    assert time.process_time() - begin < 5
    assert parts.input_ids == encode_spans([Span("a b" * 60_000, "text")], tokenizer).input_ids
    assert len(set(parts.is_trained)) == 2


def test_tokens_that_swallow_spaces_do_so() -> None:
    tokenizer = load_tokenizer(LABELS / LLAMA[0])
    tokenizer.add_tokens([AddedToken("<|end|>", lstrip=True, rstrip=True, special=True, normalized=False)])
    spaced = encode_spans([Span("a <|end|> b", "control")], tokenizer)
    assert spaced == encode_spans([Span("a<|end|>b", "control")], tokenizer)


def write_files(folder: Path, name: str, **files: object) -> Path:
    shutil.copytree(LABELS / name, folder)
    for file, value in files.items():
        (folder / f"{file}.json").write_text(json.dumps(value))
    return folder


def test_added_tokens_get_the_ids_of_the_file_and_keep_the_stray_word_start(tmp_path: Path) -> None:
    added = {"<im_start>": 3000, "<im_end>": 3005}
    tokenizer = load_tokenizer(write_files(tmp_path / "x", LLAMA[0], added_tokens=added))
    assert tokenizer.convert_tokens_to_ids(list(added)) == [3000, 3005]
    word_start = tokenizer.convert_tokens_to_ids(WORD_START)
    ids = tokenizer_image_token("<im_start><image><im_end>", tokenizer)
    assert ids == [1, word_start, 3000, -200, word_start, 3005]
    spans = [Span("<im_start>", "control"), Span("<image>", "image"), Span("<im_end>", "control")]
    assert encode_spans(spans, tokenizer).input_ids == ids


def test_files_say_pad_length_and_side(tmp_path: Path) -> None:
    config = {"model_max_length": 77, "padding_side": "left", "legacy": False, "add_bos_token": False}
    special = {"pad_token": "<unk>", "additional_special_tokens": ["<extra>"]}
    folder = write_files(tmp_path / "x", LLAMA[0], tokenizer_config=config, special_tokens_map=special)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (77, "left")
    assert tokenizer("a").input_ids == tokenizer_of(LLAMA[0])("a").input_ids[1:]
    assert tokenizer.convert_tokens_to_ids("<extra>") == 3000


def test_legacy_is_true_where_nothing_says_otherwise(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "x", LLAMA[1])
    (folder / "tokenizer_config.json").unlink()
    text = "a</s>b</s> c"
    ids = tokenizer_of(LLAMA[1])(text).input_ids
    assert load_tokenizer(folder)(text).input_ids == ids
    assert tokenizer_of(LLAMA[0])(text).input_ids != ids


@pytest.mark.parametrize("template", sorted({template.name for template in TEMPLATES.values()}))
@pytest.mark.parametrize("name", ALL)
def test_plain_transformers_gets_the_same_ids_from_a_saved_folder(
    name: str, template: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(name)
    save_tokenizer(tokenizer, tmp_path, template=get_template(template), with_image_token=True)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert "Llama" not in type(plain).__name__
    texts = ("What  is 它?", "A bus.\n", "Why?")
    turns = [
        Turn("user", content_of(f"<image>\n{texts[0]}")),
        Turn("assistant", (texts[1],)),
        Turn("user", content_of(f"<image>\n{texts[2]}")),
    ]
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": texts[0]}]},
        {"role": "assistant", "content": texts[1]},
        {"role": "user", "content": f"<image>\n{texts[2]}"},
    ]
    image = plain.convert_tokens_to_ids("<image>")
    assert image == len(tokenizer)
    for is_open, count in ((True, 3), (False, 2)):
        spans = get_template(template).render(turns[:count], add_generation_prompt=is_open)
        ids = [
            image if token == IMAGE_TOKEN_INDEX else token
            for token in encode_spans(spans, tokenizer).input_ids
        ]
        shown = plain.apply_chat_template(
            messages[:count], add_generation_prompt=is_open, tokenize=True, return_dict=False
        )
        assert shown == ids


def test_a_system_message_replaces_the_system_text(tmp_path: Path) -> None:
    save_tokenizer(tokenizer_of("tokenizer_neox"), tmp_path, template=get_template("Hermes-2"))
    plain = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    text = plain.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nhi<|im_end|><|im_start|>assistant\n"
    )


def test_im_start_and_im_end_survive_saving(tmp_path: Path) -> None:
    added = {"<im_start>": 3000, "<im_end>": 3001}
    tokenizer = load_tokenizer(write_files(tmp_path / "x", LLAMA[0], added_tokens=added))
    template = get_template("vicuna_v1")
    save_tokenizer(tokenizer, tmp_path / "y", template=template, with_image_token=True, im_start_end=True)
    plain = AutoTokenizer.from_pretrained(tmp_path / "y")
    spans = template.render([Turn("user", (PICTURE, "\nhi"))], add_generation_prompt=True, im_start_end=True)
    ids = encode_spans(spans, tokenizer).input_ids
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]}]
    shown = plain.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert shown == [3002 if token == IMAGE_TOKEN_INDEX else token for token in ids]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("with_model", [False, True])
def test_a_saved_folder_loads_as_the_same_tokenizer(name: str, with_model: bool, tmp_path: Path) -> None:
    first = load_tokenizer(LABELS / name)
    first.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    first.pad_token = first.unk_token
    save_tokenizer(first, tmp_path, template=None, with_image_token=True)
    if with_model and name in LLAMA:
        shutil.copy(LABELS / name / "tokenizer.model", tmp_path)
    second = load_tokenizer(tmp_path)
    assert second.get_vocab() == first.get_vocab()
    assert second.special_tokens_map == first.special_tokens_map
    assert (second.model_max_length, second.padding_side) == (first.model_max_length, first.padding_side)
    for prompt in ("  x </s> y", "<im_start><image><im_end>\nx", NEVER_CONTROL, ""):
        assert tokenizer_image_token(prompt, second) == tokenizer_image_token(prompt, first)
        spans = [Span(prompt, "text")]
        assert encode_spans(spans, second) == encode_spans(spans, first)


def test_image_leaves_a_plain_transformers_tokenizer_without_moving_others(tmp_path: Path) -> None:
    backend = tokenizer_of("tokenizer_neox").backend_tokenizer
    state = json.loads(backend.to_str())
    first = backend.get_vocab_size()
    for index, content in enumerate(("<image>", "<pad>")):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        state["added_tokens"].append({"id": first + index, "content": content, "special": True, **flags})
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    tokenizer = load_tokenizer(tmp_path)
    assert "<image>" not in tokenizer.get_vocab()
    assert tokenizer("a<pad>").input_ids[-1] == first + 1


def test_runs_of_spaces_with_llamas_equal_scores_are_joined_as_sentencepiece_joins_them(
    tmp_path: Path,
) -> None:
    """LLaMA's own vocabulary holds 2 to 16 spaces, all with score -1e9; the fixture's is changed to that."""

    def entry(piece: str, score: float) -> bytes:
        text = piece.encode()
        return b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score)

    content = (LABELS / LLAMA[0] / "tokenizer.model").read_bytes()
    old = sentencepiece.SentencePieceProcessor(model_proto=content)
    scores = {old.id_to_piece(index): old.get_score(index) for index in range(old.get_piece_size())}
    for length in range(2, 17):
        piece = WORD_START * length
        if piece in scores:
            content = content.replace(entry(piece, scores[piece]), entry(piece, -1e9))
        else:
            body = entry(piece, -1e9)
            content += b"\x0a" + bytes([len(body)]) + body
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    reference, ours = sentencepiece.SentencePieceProcessor(model_proto=content), read_sentencepiece(path)
    for length in range(1, 80):
        for text in ("a" + " " * length, "a" + " " * length + "the"):
            assert ours.encode(WORD_START + text).ids == reference.encode(text)


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({"tokenizer.model": None}, TokenizerError, "neither tokenizer.model nor tokenizer.json"),
        ({"tokenizer.model": b""}, TokenizerError, "not a sentencepiece model"),
        ({"tokenizer.model": 9000}, TokenizerError, "copy it again"),
        ({"tokenizer.model": b"not a model"}, TokenizerError, "copy it again"),
        ({"tokenizer_config.json": b"{"}, TokenizerError, "is not JSON"),
        ({"tokenizer_config.json": b"[]"}, TokenizerError, "JSON object"),
        ({"tokenizer_config.json": b'{"padding_side": "up"}'}, ConfigError, "'up'"),
        ({"tokenizer_config.json": b'{"model_max_length": "x"}'}, ConfigError, "'x'"),
        ({"added_tokens.json": b'{"<a>": "x"}'}, TokenizerError, "added_tokens.json"),
        ({"added_tokens.json": b'{"<a>": 5}'}, TokenizerError, "one id"),
        ({"added_tokens.json": b'{"</s>": 5}'}, TokenizerError, "has id 5"),
        ({"tokenizer.model": None, "tokenizer.json": b"{}"}, TokenizerError, "no model"),
        (
            {"tokenizer.model": None, "tokenizer.json": b'{"model": {"vocab": {}}}'},
            TokenizerError,
            "copy it again",
        ),
    ],
)
def test_damaged_files_are_errors_with_a_remedy(
    files: dict[str, bytes | int | None], error: type[LlavaError], words: str, tmp_path: Path
) -> None:
    folder = write_files(tmp_path / "x", LLAMA[0])
    for name, content in files.items():
        path = folder / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(error) as caught:
        load_tokenizer(folder)
    assert words in str(caught.value)
    assert caught.value.remedy


def test_another_kind_of_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=30, minloglevel=2
    )
    with pytest.raises(TokenizerError, match="cannot be converted exactly"):
        load_tokenizer(tmp_path)


def test_a_slow_tokenizer_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="cannot be saved"):
        save_tokenizer(object(), tmp_path, template=None)
