"""A training conversation -> token ids and labels.

Before the collator. The loss mask is carried through from the spans, so it is right for whatever the text
holds; the original tokenised pieces again and counted (`preprocess_v1` and its siblings in `train.py`), and
threw the sample away when the counts disagreed. Ids, and labels where it did not, are the original's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import DataError
from llava.processing.encoding import Encoded, encode_spans
from llava.rendering import PICTURE, Content, Span, Turn, content_of, render_content
from llava.templates import ChatTemplate, get_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Supervised(NamedTuple):
    """One training sample: ids with one -200 per picture, and labels, -100 where nothing is trained."""

    input_ids: list[int]
    labels: list[int]


def supervise(
    turns: Sequence[Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    template: str | ChatTemplate,
    *,
    has_image: bool,
    model_max_length: int | None,
    im_start_end: bool = False,
    keeps_places: bool = False,
) -> Supervised:
    """Render a conversation for training and encode it.

    turns: `{"from": "human" | "gpt", "value": text}`.
    has_image: whether the sample has a picture; its place becomes the first line of the turn that holds
        `<image>`. Without a picture, `<image>` is text.
    model_max_length: samples without a picture are cut here, None: nowhere; the others are cut later.
    keeps_places: for samples with several pictures: every `<image>` of a question is a picture and stays
        where it is, and those of answers are text.
    Raises DataError for turns that the template cannot hold.
    """
    if isinstance(template, str):
        template = get_template(template)
    # Kept from the original: these two styles take `<image>` for a picture even where the sample has none.
    finds_pictures = template.style in ("PLAIN", "MPT")
    place: _Placing = "as_text"
    if has_image:
        place = "where_written" if keeps_places else "first"
    elif finds_pictures:
        place = "split"
    conversation = [_turn(turn, template, place) for turn in turns]
    wraps = im_start_end and has_image
    if template.style == "PLAIN":
        spans = _caption(conversation, template, keeps_places=keeps_places)
    elif template.style in ("TWO", "LLAMA_2", "MPT"):
        spans = _dialogue(conversation, template, im_start_end=wraps)
    else:
        limit = None if has_image else model_max_length
        return _supervise_v0(conversation, tokenizer, template, im_start_end=wraps, limit=limit)
    return _labelled(encode_spans(spans, tokenizer), limit=None if has_image else model_max_length)


def _labelled(encoded: Encoded, *, limit: int | None) -> Supervised:
    """Turn flags into labels, and cut both."""
    pairs = zip(encoded.input_ids, encoded.is_trained, strict=True)
    labels = [token if is_trained else IGNORE_INDEX for token, is_trained in pairs]
    return Supervised(encoded.input_ids[:limit], labels[:limit])


_Placing = Literal["as_text", "first", "where_written", "split"]
"""What `<image>` is: text; one picture on the turn's first line; pictures where questions have them; pictures
where any turn has them."""


def _turn(turn: Mapping[str, str], template: ChatTemplate, place: _Placing) -> Turn:
    """Read one turn and put its pictures where they belong (`preprocess_multimodal`)."""
    role = turn.get("from")
    value = turn.get("value")
    if role not in ("human", "gpt") or not isinstance(value, str):
        raise DataError(
            f"a turn has from={role!r} and a value of type {type(value).__name__}",
            remedy="Use from 'human' or 'gpt' and a text value.",
        )
    name: Literal["user", "assistant"] = "assistant" if role == "gpt" else "user"
    if place == "first":
        return Turn(name, _picture_first(value, template))
    if place == "where_written" and name == "user":
        return Turn(name, _pictures_in_place(value, template))
    return Turn(name, content_of(value) if place == "split" else (value,))


def _pictures_in_place(value: str, template: ChatTemplate) -> Content:
    """Leave every picture where it is, between the template's tags where it has them."""
    parts = content_of(value)
    if not template.has_image_tags:
        return parts
    around = [(part,) if isinstance(part, str) else ("<Image>", part, "</Image>") for part in parts]
    return tuple(piece for pieces in around for piece in pieces)


def _picture_first(value: str, template: ChatTemplate) -> Content:
    """Put the picture on the first line, whatever its place; several in one turn become one."""
    if DEFAULT_IMAGE_TOKEN not in value:
        return content_of(value)
    text = value.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    text = f"\n{text}" if text else ""
    if template.has_image_tags:
        return ("<Image>", PICTURE, f"</Image>{text}")
    return (PICTURE, text) if text else (PICTURE,)


def _caption(conversation: Sequence[Turn], template: ChatTemplate, *, keeps_places: bool) -> list[Span]:
    """Pictures and caption alone, for training the projector; the question's text is left out."""
    if len(conversation) != 2 or PICTURE not in conversation[0].content:
        raise DataError(
            f"template {template.name} takes a question with <image> and a caption, and this sample has "
            f"{len(conversation)} turn(s)" + (" without a picture" if len(conversation) == 2 else ""),
            remedy="Use a dialogue template, such as v1, for this data.",
        )
    caption = render_content(conversation[1].content, im_start_end=False, is_trained=True)
    # Without kept places the turn holds one picture, or text that spells several, of which one is left.
    num_pictures = sum(part is PICTURE for part in conversation[0].content) if keeps_places else 1
    return [
        *[Span(DEFAULT_IMAGE_TOKEN, "image")] * num_pictures,
        *caption,
        Span(template.sep, "control", True),
    ]


def _dialogue(conversation: Sequence[Turn], template: ChatTemplate, *, im_start_end: bool) -> list[Span]:
    """The prompt as in chat; answers and their end tokens are trained."""
    if conversation and conversation[0].role == "assistant":
        conversation = conversation[1:]
    for index, turn in enumerate(conversation):
        if turn.role != ("user", "assistant")[index % 2]:
            raise DataError(
                f"turn {index + 1} is from the {turn.role}, as is the one before it",
                remedy="Let human and gpt turns alternate.",
            )
    return template.render(conversation, im_start_end=im_start_end, with_examples=False)


def _supervise_v0(
    conversation: Sequence[Turn],
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    *,
    im_start_end: bool,
    limit: int | None,
) -> Supervised:
    """Encode LLaVA v0's training text: `### Role: text` lines, trained but for the questions' own text.

    Trained are whole answer lines and the `###` of questions (and of what would come next), which teaches the
    model to end its answer with `###`. Labels are counted as the original counts them: a piece is as long as
    it is when encoded alone, and the first two ids of a question are its `###`. With LLaMA's vocabulary this
    marks just those characters; with others it drifts, and is kept because the original has no check here.
    """
    pieces = [[Span(f"{template.system}\n\n", "control")]]
    for turn in conversation:
        is_answer = turn.role == "assistant"
        content = render_content(turn.content, im_start_end=im_start_end, is_trained=is_answer)
        header = Span(f"### {template.roles[is_answer]}: ", "control")
        pieces.append([header, *content, Span("\n", "control")])
    joined = [span for piece in pieces for span in piece]
    input_ids = encode_spans([*joined, Span("### ", "control")], tokenizer).input_ids[:limit]
    lengths = [len(encode_spans(piece, tokenizer).input_ids[:limit]) for piece in pieces]
    labels = list(input_ids)
    _ignore(labels, 0, lengths[0])
    start = lengths[0]
    for turn, length in zip(conversation, lengths[1:], strict=True):
        if turn.role == "user":
            _ignore(labels, start + 2, start + length)
        start += length
    return Supervised(input_ids, [IGNORE_INDEX if label == IMAGE_TOKEN_INDEX else label for label in labels])


def _ignore(labels: list[int], start: int, stop: int) -> None:
    for index in range(start, min(stop, len(labels))):
        labels[index] = IGNORE_INDEX
