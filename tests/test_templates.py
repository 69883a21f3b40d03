"""Templates: every name of the original's, stop strings, spans, and the one table that looks at names."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llava.errors import ConfigError, PromptError
from llava.templates import PICTURE, TEMPLATES, Span, Turn, content_of, get_template, guess_template

ROUND = (Turn("user", (PICTURE, "\nQ1")), Turn("assistant", ("A1",)), Turn("user", ("Q2",)))
LLAVA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)


def text_of(spans: list[Span]) -> str:
    return "".join(span.text for span in spans)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("llava_v1", " USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:"),
        ("llava_v0", "###Human: <image>\nQ1###Assistant: A1###Human: Q2###Assistant:"),
        (
            "llava_llama_2",
            f"[INST] <<SYS>>\n{LLAVA_2}\n<</SYS>>\n\n<image>\nQ1 [/INST] A1 </s><s>[INST] Q2 [/INST]",
        ),
        (
            "mpt",
            "<|im_end|><|im_start|>user\n<image>\nQ1<|im_end|><|im_start|>assistant\nA1<|im_end|>"
            "<|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n",
        ),
        ("internvl_zh", " <human>: <image>\nQ1 <bot>: A1</s><human>: Q2 <bot>:"),
        ("internlm", "\n\n<s><|User|>:<image>\nQ1<eoh>\n<|Bot|>:A1<eoa>\n<s><|User|>:Q2<eoh>\n<|Bot|>:"),
    ],
)
def test_a_dialogue_reads_as_the_original_writes_it(name: str, end: str) -> None:
    assert text_of(get_template(name).render(ROUND, add_generation_prompt=True)).endswith(end)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_content_is_never_control_and_only_answers_are_trained(name: str) -> None:
    turns = (Turn("user", (PICTURE, "Q1")), Turn("assistant", ("A1",)))
    spans = get_template(name).render(turns, with_examples=False)
    assert [span for span in spans if span.kind == "text"] == [
        Span("Q1", "text", False),
        Span("A1", "text", True),
    ]
    assert [span for span in spans if span.kind == "image"] == [Span("<image>", "image", False)]
    trained = [span.text for span in spans if span.is_trained]
    assert trained[-1].strip(" ") == get_template(name).stop_strings[0].strip(" ")


def test_stop_strings_are_what_ends_an_answer() -> None:
    expected = {
        "llava_v0": ("###",),
        "vicuna_v1": ("</s>",),
        "llava_llama_2": ("</s>",),
        "mistral_instruct": ("</s>",),
        "mpt": ("<|im_end|>",),
        "phi3-chat": ("<|end|>",),
        "plain": ("\n",),
        "internlm": ("<eoa>", "<|User|>"),
        "internvl_zh": ("</s>",),
    }
    assert {name: get_template(name).stop_strings for name in expected} == expected


def test_an_unknown_template_is_an_error_that_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'vicuna_v1'"):
        get_template("vicuna_v2")


def test_the_first_question_of_llama_2_must_exist() -> None:
    with pytest.raises(PromptError, match="Begin the conversation with a question"):
        get_template("llama_2").render([Turn("assistant", ("Hello",))])


def test_pictures_are_wrapped_where_the_checkpoint_asks_for_it() -> None:
    spans = get_template("vicuna_v1").render(ROUND, im_start_end=True)
    assert "USER: <im_start><image><im_end>\nQ1" in text_of(spans)
    assert {span.kind for span in spans if span.text.startswith("<im_")} == {"control"}


def test_content_of_splits_at_pictures() -> None:
    assert content_of("a<image><image>b") == ("a", PICTURE, PICTURE, "b")
    assert content_of("") == ()


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("InternVL-Chat-ViT-6B-Vicuna-7B", "vicuna_v1"),
        ("InternVL-Chat-ViT-6B-Vicuna-13B-448px", "vicuna_v1"),
        ("InternVL-Chat-Chinese-V1-1", "internvl_zh"),
        ("InternVL-Chat-Chinese-V1-2-Plus", "Hermes-2"),
        ("llava-v1.5-7b", "vicuna_v1"),
        ("llava-v1.6-vicuna-13b", "vicuna_v1"),
        ("llava-v1.6-34b", "chatml_direct"),
        ("llava-v1.6-mistral-7b", "mistral_instruct"),
        ("llava-llama-2-13b-chat-lightning-preview", "llava_llama_2"),
        ("LLaVA-Lightning-MPT-7B-preview", "mpt"),
        ("LLaVA-7b-v0", "llava_v0"),
        ("x", "vicuna_v1"),
        ("pretrained", "vicuna_v1"),
        ("prompt-study", "vicuna_v1"),
    ],
)
def test_released_names_get_their_template_and_all_others_the_default(name: str, template: str) -> None:
    guess = guess_template(name)
    assert guess.template is get_template(template)
    assert repr(name) in guess.reason


def test_templates_and_conversations_need_no_torch() -> None:
    program = (
        "import sys, llava.templates, llava.conversation\n"
        "print(sorted({'torch', 'transformers', 'PIL'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
