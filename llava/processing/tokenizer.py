"""A checkpoint folder -> its tokenizer, with the ids of the original's slow tokenizer; and back to a folder.

Used by the model builder (load, save) and, through `encode_spans` and `tokenizer_image_token`, by chat and
training. transformers' own conversion of `tokenizer.model` gives other ids (merge order, leading spaces), so
the file is converted here; `legacy` means what it means in `LlamaTokenizer` of transformers 4.37.2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import ConfigError, FileError, TokenizerError
from llava.files import read_json, write_json, write_text
from llava.processing.chat_template import chat_template
from llava.processing.encoding import Encoded, encode_spans, tokenizer_image_token
from llava.processing.sentencepiece_model import WORD_START, read_sentencepiece
from llava.templates import ChatTemplate

__all__ = ["Encoded", "encode_spans", "load_tokenizer", "save_tokenizer", "tokenizer_image_token"]

_MARKER = "llava_format_version"
"""Key in tokenizer_config.json that says tokenizer.json is ours, so its ids are the original's."""

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_UNLIMITED = 10**9
"""transformers writes "no limit" as 10**30."""


@dataclass
class _Settings:
    """What the JSON files beside a vocabulary say."""

    named: dict[str, str]
    """Role, such as "bos_token", to content."""
    added: dict[str, int | None]
    """Content of every token that text is cut at to its id; None: as in the vocabulary, or the next free."""
    special: set[str]
    """Those of them that are special, not merely added."""
    strips: dict[str, tuple[bool, bool]]
    """Content to (lstrip, rstrip)."""
    legacy: bool
    add_bos_token: bool
    add_eos_token: bool
    model_max_length: int | None
    padding_side: str
    is_ours: bool


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a checkpoint folder; its vocabulary holds no `<image>`.

    Reads tokenizer.json where we wrote it, else tokenizer.model (LLaMA's kind), else tokenizer.json.
    added_tokens.json, special_tokens_map.json and tokenizer_config.json beside it are honoured. `legacy`
    absent from tokenizer_config.json means True. Raises TokenizerError, or ConfigError for a value it cannot
    have.

    `tokenizer(text)` gives the original's ids, but for one case: a text that begins with a token merely
    added, as `<im_start>`, gets no leading space; `tokenizer_image_token` and `encode_spans` give it.
    """
    folder = Path(folder)
    try:
        settings = _settings(folder)
        has_json, has_model = ((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
        if has_json and (settings.is_ours or not has_model):
            backend = _from_json(folder / "tokenizer.json")
        elif has_model:
            backend = _from_sentencepiece(folder / "tokenizer.model", settings)
        else:
            raise TokenizerError(
                f"{folder} has neither tokenizer.model nor tokenizer.json",
                remedy="Copy the tokenizer files of the base language model into it.",
            )
    except FileError as error:
        raise TokenizerError(error.cause, remedy="Copy the tokenizer files again.") from error
    return _wrap(backend, settings)


def _wrap(backend: Tokenizer, settings: _Settings) -> PreTrainedTokenizerFast:
    """Put a backend into the class that transformers' models and processors take."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    arguments: dict[str, Any] = {name: token for name, token in settings.named.items() if token in vocabulary}
    if settings.model_max_length is not None:
        arguments["model_max_length"] = settings.model_max_length
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side=settings.padding_side,
        clean_up_tokenization_spaces=False,
        legacy=settings.legacy,
        **arguments,
    )


def _settings(folder: Path) -> _Settings:
    """Read the JSON files; what is absent is as in `LlamaTokenizer`."""
    config_file = folder / "tokenizer_config.json"
    config, special_map = _json_object(config_file), _json_object(folder / "special_tokens_map.json")
    has_model = (folder / "tokenizer.model").is_file()
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} if has_model else {}
    for name in _NAMED:
        content = _content(config.get(name)) or _content(special_map.get(name))
        if content:
            named[name] = content
    further = [
        _content(token)
        for tokens in (config.get("additional_special_tokens"), special_map.get("additional_special_tokens"))
        for token in (tokens if isinstance(tokens, list) else [])
    ]
    settings = _Settings(
        named=named,
        added=dict.fromkeys([*named.values(), *further]),
        special={*named.values(), *further},
        strips={},
        legacy=config.get("legacy") is not False,
        add_bos_token=config.get("add_bos_token") is not False,
        add_eos_token=config.get("add_eos_token") is True,
        model_max_length=_limit(config.get("model_max_length"), config_file),
        padding_side=config.get("padding_side", "right"),
        is_ours=_MARKER in config,
    )
    if settings.padding_side not in ("left", "right"):
        raise ConfigError.of_field(
            "padding_side", settings.padding_side, ("left", "right"), source=str(config_file)
        )
    _read_added(settings, _json_object(folder / "added_tokens.json"), config.get("added_tokens_decoder"))
    return settings


def _read_added(settings: _Settings, added_tokens: dict[str, Any], decoder: object) -> None:
    """Take ids and flags of added tokens from added_tokens.json and from the newer `added_tokens_decoder`."""
    try:
        settings.added |= {content: int(index) for content, index in added_tokens.items()}
        for index, token in decoder.items() if isinstance(decoder, dict) else ():
            content = token["content"]
            settings.added[content] = int(index)
            settings.strips[content] = (token.get("lstrip") is True, token.get("rstrip") is True)
    except (TypeError, ValueError, KeyError, AttributeError):
        raise TokenizerError(
            "added_tokens.json or added_tokens_decoder of tokenizer_config.json does not map tokens and ids",
            remedy="Copy the tokenizer files again.",
        ) from None
    settings.added.pop(DEFAULT_IMAGE_TOKEN, None)


def _limit(length: object, source: Path) -> int | None:
    """Return the context length a tokenizer states, None where it states none."""
    if length is None or (isinstance(length, int | float) and length >= _UNLIMITED):
        return None
    if isinstance(length, bool) or not isinstance(length, int | float) or length < 1:
        raise ConfigError(f"model_max_length is {length!r} in {source}", remedy="Give a positive number.")
    return int(length)


def _json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, an empty one where there is no file."""
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise FileError(f"{path} does not hold a JSON object")
    return value


def _content(token: object) -> str:
    """Return the text of a token given as text or as a record."""
    if isinstance(token, dict):
        return str(token.get("content", ""))
    return token if isinstance(token, str) else ""


def _from_json(path: Path) -> Tokenizer:
    """Read a tokenizer.json and take `<image>` out of it."""
    state = _json_object(path)
    tokens, model = state.get("added_tokens", []), state.get("model")
    reason = "it has no model with a vocabulary"
    if isinstance(model, dict) and isinstance(model.get("vocab"), dict) and _are_tokens(tokens):
        state["added_tokens"] = [token for token in tokens if token["content"] != DEFAULT_IMAGE_TOKEN]
        model["vocab"].pop(DEFAULT_IMAGE_TOKEN, None)
        for token in state["added_tokens"]:
            # Without this, tokens behind `<image>` would move up into its place.
            model["vocab"].setdefault(token["content"], token["id"])
        try:
            return Tokenizer.from_str(json.dumps(state))
        except Exception as error:  # the class that `tokenizers` itself raises
            reason = " ".join(str(error).split())
    raise TokenizerError(
        f"{path} cannot be read as a tokenizer: {reason}",
        remedy="The file is damaged or of another kind; copy it again.",
    )


def _are_tokens(tokens: object) -> bool:
    return isinstance(tokens, list) and all(
        isinstance(token, dict) and {"content", "id"} <= token.keys() for token in tokens
    )


def _from_sentencepiece(path: Path, settings: _Settings) -> Tokenizer:
    """Build the whole pipeline around the pieces of a sentencepiece file."""
    backend = _with_added(read_sentencepiece(path), settings)
    if settings.legacy:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend(WORD_START), normalizers.Replace(" ", WORD_START)]
        )
    else:
        # A space goes in front of the text's first run, and only there, whatever it begins with. By then the
        # text's own spaces have become visible ones, so the first step always adds and the second translates.
        backend.normalizer = normalizers.Replace(" ", WORD_START)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(" ", prepend_scheme="first", split=False),
                pre_tokenizers.Metaspace(WORD_START, prepend_scheme="never", split=False),
            ]
        )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(WORD_START, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bos, eos = settings.named["bos_token"], settings.named["eos_token"]
    ends = [bos] * settings.add_bos_token, [eos] * settings.add_eos_token
    backend.post_processor = processors.TemplateProcessing(
        single=[*ends[0], "$A", *ends[1]],
        pair=[*ends[0], "$A", *ends[1], *(f"{token}:1" for token in ends[0]), "$B:1", *ends[1]],
        special_tokens=[(token, backend.token_to_id(token)) for token in (bos, eos)],
    )
    return backend


def _with_added(backend: Tokenizer, settings: _Settings) -> Tokenizer:
    """Return the backend with added tokens at the ids the files give them."""
    state = json.loads(backend.to_str())
    vocabulary: dict[str, int] = state["model"]["vocab"]
    # Tokens with an id of their own first, so that the others take what is left.
    for content, index in sorted(settings.added.items(), key=lambda item: item[1] is None):
        if content not in vocabulary:
            vocabulary[content] = len(vocabulary) if index is None else index
        elif index not in (None, vocabulary[content]):
            raise TokenizerError(
                f"added token {content!r} has id {index}, and the vocabulary has it as {vocabulary[content]}",
                remedy="Take added_tokens.json and the vocabulary from the same model.",
            )
    if len(set(vocabulary.values())) != len(vocabulary):
        raise TokenizerError(
            "two tokens have one id", remedy="Take added_tokens.json and the vocabulary from the same model."
        )
    backend = Tokenizer.from_str(json.dumps(state))
    for content in settings.added:
        lstrip, rstrip = settings.strips.get(content, (False, False))
        is_special = content in settings.special
        token = AddedToken(content, lstrip=lstrip, rstrip=rstrip, normalized=False, special=is_special)
        (backend.add_special_tokens if is_special else backend.add_tokens)([token])
    return backend


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    *,
    template: ChatTemplate | None,
    with_image_token: bool = False,
    im_start_end: bool = False,
) -> None:
    """Write tokenizer.json, tokenizer_config.json and, given a template, chat_template.jinja.

    Plain transformers loads the folder with `AutoTokenizer.from_pretrained`; `apply_chat_template` gives the
    original's ids. with_image_token: add `<image>` as a special token with the next free id, for plain
    transformers' LLaVA; `load_tokenizer` of the folder leaves it out again. im_start_end: the chat template
    wraps pictures in `<im_start>` and `<im_end>`.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TokenizerError(
            f"a tokenizer of class {type(tokenizer).__name__} cannot be saved",
            remedy="Load it with llava.processing.tokenizer.load_tokenizer.",
        )
    folder = Path(folder)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        _MARKER: 1,
        "legacy": tokenizer.init_kwargs.get("legacy", True),
        "padding_side": tokenizer.padding_side,
        "clean_up_tokenization_spaces": False,
        **{name: token for name, token in tokenizer.special_tokens_map.items() if name in _NAMED},
    }
    if tokenizer.model_max_length < _UNLIMITED:
        config["model_max_length"] = tokenizer.model_max_length
    if with_image_token:
        backend.add_special_tokens([AddedToken(DEFAULT_IMAGE_TOKEN, normalized=False, special=True)])
        config["image_token"] = DEFAULT_IMAGE_TOKEN
    write_text(folder / "tokenizer.json", backend.to_str(pretty=True) + "\n")
    write_json(folder / "tokenizer_config.json", config)
    if template is not None:
        jinja = chat_template(template, tokenizer, im_start_end=im_start_end)
        write_text(folder / "chat_template.jinja", jinja)
