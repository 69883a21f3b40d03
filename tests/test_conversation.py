"""The original's `Conversation`, against what both originals wrote."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from llava.conversation import Conversation, SeparatorStyle, conv_templates, default_conversation
from llava.errors import PromptError
from llava.files import read_json
from tests.processing.text_cases import CONVERSATION, lines

CASES = read_json(CONVERSATION / "cases.json")["cases"]
SOURCES = ("internvl", "llava")


def filled(template: str, case: str, *, clear: bool) -> Conversation:
    conversation = conv_templates[template].copy()
    if clear:
        conversation.messages = []
    for role, message in CASES[case]:
        if isinstance(message, dict):
            message = (message["image"], Image.new("RGB", (20, 10)), "Default")
        conversation.append_message(conversation.roles[role] if isinstance(role, int) else role, message)
    return conversation


def as_recorded(conversation: Conversation) -> dict[str, Any]:
    return {
        "system": conversation.system,
        "roles": list(conversation.roles),
        "messages": [list(message) for message in conversation.messages],
        "offset": conversation.offset,
        "sep_style": conversation.sep_style.name,
        "sep": conversation.sep,
        "sep2": conversation.sep2,
        "version": conversation.version,
        "stop_str": conversation.stop_str,
        "stop_token_ids": conversation.stop_token_ids,
    }


@pytest.mark.parametrize("source", SOURCES)
def test_every_template_has_the_originals_fields_and_aliases(source: str) -> None:
    recorded = read_json(CONVERSATION / "templates.json")[source]["templates"]
    for name, fields in recorded.items():
        assert conv_templates[name] is conv_templates[fields.pop("alias_of")]
        assert as_recorded(conv_templates[name]) == fields, name


def test_the_default_is_internvls() -> None:
    assert all(
        default_conversation is conv_templates[name]
        for name in read_json(CONVERSATION / "templates.json")["internvl"]["default_conversation"]
    )


@pytest.mark.parametrize("source", SOURCES)
def test_every_recorded_prompt_is_met(source: str) -> None:
    rows = [row for row in lines(CONVERSATION / "prompts.jsonl") if row["source"] == source]
    assert rows
    for row in rows:
        conversation = filled(row["template"], row["case"], clear=row["clear_template_messages"])
        if "error" not in row:
            assert conversation.get_prompt() == row["prompt"], (row["template"], row["case"])


def test_what_the_original_cannot_render_is_a_clear_error_or_rendered() -> None:
    """D05, D06: for its AssertionError ours says why, for its TypeError ours renders."""
    rows = [row for row in lines(CONVERSATION / "prompts.jsonl") if "error" in row]
    assert {(row["error"], row["template"]) for row in rows} == {
        ("AssertionError", "llama_2"),
        ("AssertionError", "llava_llama_2"),
        ("AssertionError", "mistral_instruct"),
        ("TypeError", "plain"),
    }
    for row in rows:
        conversation = filled(row["template"], row["case"], clear=False)
        if row["error"] == "TypeError":
            assert conversation.get_prompt().endswith("\n")
        else:
            with pytest.raises(PromptError, match=row["template"]):
                conversation.get_prompt()


def test_an_empty_system_text_is_wrapped_only_by_internvls_rule() -> None:
    prompts = []
    for wraps in (True, False):
        conversation = conv_templates["llava_llama_2"].copy()
        conversation.system, conversation.wraps_empty_system = "", wraps
        conversation.append_message("USER", "Q")
        prompts.append(conversation.get_prompt())
    assert prompts == ["[INST] <<SYS>>\n\n<</SYS>>\n\nQ [/INST]", "[INST] Q [/INST]"]


def test_a_copy_shares_no_messages_and_a_template_cannot_be_appended_to() -> None:
    conversation = conv_templates["v1"].copy()
    conversation.append_message("USER", "hi")
    assert len(conv_templates["v1"].messages) == 0
    with pytest.raises(AttributeError):
        conv_templates["v1"].append_message("USER", "hi")


def test_a_picture_in_a_later_turn_is_rendered_by_every_template() -> None:
    """D07: the original's CHATINTERN and INTERNVL_ZH fail on it."""
    for name in ("internlm", "internvl_zh"):
        conversation = conv_templates[name].copy()
        for role, message in (
            (0, "hi"),
            (1, "hello"),
            (0, ("<image>\nwhat?", Image.new("RGB", (4, 4)), "Pad")),
        ):
            conversation.append_message(conversation.roles[role], message)
        assert "<image>\nwhat?" in conversation.get_prompt()


def test_dict_and_chatbot_hold_the_text_of_pictures() -> None:
    conversation = filled("v1", "tuple_image_tag_end", clear=False)
    assert conversation.dict()["messages"][0] == ["USER", "Describe the image.\n<image>"]
    (question, answer), (second, unanswered) = conversation.to_gradio_chatbot()
    assert question is not None
    assert question.endswith('alt="user upload image" />Describe the image.')
    data = question.split("base64,")[1].split('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(data))).format == "JPEG"
    assert (answer, second, unanswered) == ("A dog.", "What breed?", None)


def test_picture_modes_pad_resize_or_leave_alone() -> None:
    sizes = {}
    for mode in ("Default", "Crop", "Pad", "Resize"):
        conversation = conv_templates["v1"].copy()
        conversation.append_message("USER", ("<image>", Image.new("RGB", (21, 10), "red"), mode))
        (image,) = conversation.get_images(return_pil=True)
        assert isinstance(image, Image.Image)
        sizes[mode] = image.size
        if mode == "Pad":
            assert image.getpixel((0, 4)) == (122, 116, 104)
            assert image.getpixel((0, 5)) == (255, 0, 0)
        (original,) = conversation.get_images(return_org=True)
        assert isinstance(original, str)
        assert Image.open(io.BytesIO(base64.b64decode(original))).size == (21, 10)
    assert sizes == {"Default": (21, 10), "Crop": (21, 10), "Pad": (21, 21), "Resize": (336, 336)}


def test_an_unknown_picture_mode_is_an_error() -> None:
    conversation = conv_templates["v1"].copy()
    conversation.append_message("USER", ("<image>", Image.new("RGB", (2, 2)), "Blur"))
    with pytest.raises(PromptError, match="'Blur'"):
        conversation.get_images()


def test_a_conversation_can_be_built_by_hand() -> None:
    conversation = Conversation(
        "S", ("A", "B"), [["A", "x"], ["B", None]], 0, SeparatorStyle.TWO, " ", "</s>"
    )
    assert conversation.get_prompt() == "S A: x B:"
