"""Prompt templates: every one of the original's, by its names, and the rule that picks one by a name.

Chat and training take a `ChatTemplate` as an argument; nothing here is a global that changes. Texts, roles
and separators: `llava/conversation.py` of OpenGVLab/InternVL (internvl_chat_llava) and haotian-liu/LLaVA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from llava.errors import ConfigError
from llava.rendering import PICTURE, Content, Message, Picture, Span, Style, Turn, content_of, render_messages

__all__ = [
    "PICTURE",
    "TEMPLATES",
    "ChatTemplate",
    "Content",
    "Message",
    "Picture",
    "Span",
    "TemplateGuess",
    "Turn",
    "content_of",
    "get_template",
    "guess_template",
]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """How a conversation is written for one family of checkpoints."""

    name: str
    """The template's own name; aliases lead to the same object."""
    system: str
    """System text with its header, without the separator after it."""
    roles: tuple[str, str]
    """User and assistant as they are written."""
    style: Style
    """The rendering rule."""
    sep: str
    """Separator after system text and questions (after every message in SINGLE and MPT)."""
    sep2: str | None = None
    """Separator after answers, where it differs."""
    version: str = "Unknown"
    """The original's name for the family; "mmtag" in it puts `<Image>` and `</Image>` around pictures."""
    examples: tuple[Turn, ...] = ()
    """Turns every conversation begins with, hidden from the user."""
    wraps_empty_system: bool = True
    """LLAMA_2 only: write the `<<SYS>>` block around an empty system text (InternVL does, LLaVA does not)."""
    stop_str: str | None = None
    """A further string that ends an answer."""
    stop_token_ids: tuple[int, ...] = ()
    """Recorded as the original has it; the original never uses it."""

    @property
    def second_sep(self) -> str:
        """The separator after answers."""
        return self.sep if self.sep2 is None or self.style in ("SINGLE", "MPT") else self.sep2

    @property
    def has_image_tags(self) -> bool:
        """Whether pictures stand between `<Image>` and `</Image>`."""
        return "mmtag" in self.version

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end an answer, besides the end-of-sequence token."""
        return (self.second_sep, *([self.stop_str] if self.stop_str else []))

    def render(
        self,
        turns: Sequence[Turn],
        *,
        add_generation_prompt: bool = False,
        im_start_end: bool = False,
        with_examples: bool = True,
    ) -> list[Span]:
        """Render a conversation to spans.

        add_generation_prompt: end with the header of an answer still to come.
        im_start_end: put `<im_start>` and `<im_end>` around every picture (`mm_use_im_start_end`).
        Raises PromptError where the template cannot hold the turns.
        """
        everything = [*(self.examples if with_examples else ()), *turns]
        if add_generation_prompt:
            everything.append(Turn("assistant", ()))
        messages = [
            Message(self.roles[turn.role == "assistant"], turn.content, turn.role == "assistant")
            for turn in everything
        ]
        return render_messages(self, messages, im_start_end=im_start_end)


_FOR_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_FOR_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# No space before "The visual content": as the original was trained.
_WITH_TAGS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_LLAVA_LLAMA_2 = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, "
    "dangerous, or illegal content. Please ensure that your responses are socially unbiased and positive in "
    "nature.\n\nIf a question does not make any sense, or is not factually coherent, explain why instead of "
    "answering something not correct. If you don't know the answer to a question, please don't share false "
    "information."
)
_V0_QUESTION = "What are the key differences between renewable and non-renewable energy sources?"
_V0_ANSWER = (
    "Renewable energy sources are those that can be replenished naturally in a relatively "
    "short amount of time, such as solar, wind, hydro, geothermal, and biomass. Non-renewable "
    "energy sources, on the other hand, are finite and will eventually be depleted, such as "
    "coal, oil, and natural gas. Here are some key differences between renewable and "
    "non-renewable energy sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while "
    "non-renewable energy sources are finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact "
    "than non-renewable sources, which can lead to air and water pollution, greenhouse gas "
    "emissions, and other negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they "
    "typically have lower operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more "
    "remote locations than non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to "
    "different situations and needs, while non-renewable sources are more rigid and "
    "inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, "
    "while non-renewable sources are not, and their depletion can lead to economic and social "
    "instability.\n"
)
_CHATML_ROLES = ("<|im_start|>user\n", "<|im_start|>assistant\n")
_HUMAN_ROLES = ("Human", "Assistant")
_USER_ROLES = ("USER", "ASSISTANT")


def _headed(name: str, version: str, system: str) -> ChatTemplate:
    """Vicuna v1 layout."""
    return ChatTemplate(name, system, _USER_ROLES, "TWO", " ", "</s>", version)


def _hashed(name: str, version: str, system: str, examples: tuple[Turn, ...] = ()) -> ChatTemplate:
    """Vicuna v0 layout."""
    return ChatTemplate(name, system, _HUMAN_ROLES, "SINGLE", "###", None, version, examples)


def _chatml(name: str, system: str) -> ChatTemplate:
    """ChatML layout."""
    system = f"<|im_start|>system\n{system}"
    return ChatTemplate(name, system, _CHATML_ROLES, "MPT", "<|im_end|>", None, "mpt")


def _llama_2(name: str, system: str) -> ChatTemplate:
    """LLaMA-2-chat layout."""
    return ChatTemplate(name, system, _USER_ROLES, "LLAMA_2", "<s>", "</s>", "llama_v2")


_ALL = (
    _hashed("v0", "Unknown", _FOR_HUMAN, (Turn("user", (_V0_QUESTION,)), Turn("assistant", (_V0_ANSWER,)))),
    _headed("vicuna_v1", "v1", _FOR_USER),
    _llama_2("llama_2", _LLAMA_2),
    ChatTemplate("plain", "", ("", ""), "PLAIN", "\n"),
    _hashed("llava_v0", "Unknown", _FOR_HUMAN),
    _hashed("v0_mmtag", "v0_mmtag", _WITH_TAGS),
    _headed("llava_v1", "v1", _FOR_HUMAN),
    _headed("v1_mmtag", "v1_mmtag", _WITH_TAGS),
    _llama_2("llava_llama_2", _LLAVA_LLAMA_2),
    _chatml(
        "mpt",
        "A conversation between a user and an LLM-based AI assistant. "
        "The assistant gives helpful and honest answers.",
    ),
    ChatTemplate(
        "internlm",
        "A chat between a curious <|User|> and an <|Bot|>. "
        "The <|Bot|> gives helpful, detailed, and polite answers to the <|User|>'s questions.\n\n",
        ("<|User|>", "<|Bot|>"),
        "CHATINTERN",
        "<eoh>",
        "<eoa>",
        "internlm",
        stop_str="<|User|>",
        stop_token_ids=(1, 103028),
    ),
    ChatTemplate("internvl_zh", "", ("<human>", "<bot>"), "INTERNVL_ZH", " ", "</s>"),
    _chatml("Hermes-2", "Answer the questions."),
    _chatml("internlm2-chat", "You are an AI assistant whose name is InternLM (书生·浦语)."),
    ChatTemplate(
        "phi3-chat",
        "<|system|>\nYou are an AI assistant whose name is Phi-3.",
        ("<|user|>\n", "<|assistant|>\n"),
        "MPT",
        "<|end|>",
        None,
        "mpt",
    ),
    ChatTemplate(
        "mistral_instruct", "", _USER_ROLES, "LLAMA_2", "", "</s>", "llama_v2", wraps_empty_system=False
    ),
    _chatml("chatml_direct", "Answer the questions."),
)
_ALIASES = {"default": "v0", "v1": "vicuna_v1", "v0_plain": "plain", "mistral_direct": "chatml_direct"}


def _by_name() -> dict[str, ChatTemplate]:
    named = {template.name: template for template in _ALL}
    return named | {alias: named[name] for alias, name in _ALIASES.items()}


TEMPLATES: Mapping[str, ChatTemplate] = MappingProxyType(_by_name())
"""Every template by each of its names."""


def get_template(name: str) -> ChatTemplate:
    """Return the template called `name`; raises ConfigError naming the closest one."""
    if name not in TEMPLATES:
        raise ConfigError.of_field("template", name, TEMPLATES)
    return TEMPLATES[name]


class TemplateGuess(NamedTuple):
    """A template chosen by a model's name, and why, for the caller to say so."""

    template: ChatTemplate
    reason: str


# Contract: the only place in the project that looks at a model's name. First match wins; all parts must occur
# in the lower-cased name (with "_" written as "-"). Names are those of released checkpoints. The original
# had five such lists that disagreed (its command line gave InternVL-Chat-ViT-6B-Vicuna llava_v0).
_FALLBACK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("internvl-chat-tiny",), "vicuna_v1"),
    (("internvl-chat-vit-6b-vicuna",), "vicuna_v1"),
    (("internvl-chat-v1-0",), "vicuna_v1"),
    (("internvl-chat-v1.0",), "vicuna_v1"),
    (("internvl-chat", "v1-1"), "internvl_zh"),
    (("internvl-chat", "phi3"), "phi3-chat"),
    (("internvl-chat", "4b-v1-5"), "phi3-chat"),
    (("internvl-chat", "v1-2"), "Hermes-2"),
    (("internvl-chat", "v1-5"), "internlm2-chat"),
    (("hermes-2",), "Hermes-2"),
    (("hermes2",), "Hermes-2"),
    (("llava", "34b"), "chatml_direct"),
    (("llava", "hermes"), "chatml_direct"),
    (("llava", "mistral"), "mistral_instruct"),
    (("llava", "llama-2"), "llava_llama_2"),
    (("llava", "mpt"), "mpt"),
    (("llava-v1.5",), "vicuna_v1"),
    (("llava-1.5",), "vicuna_v1"),
    (("llava-v1.6-vicuna",), "vicuna_v1"),
    (("llava-v1",), "llava_v1"),
    (("llava", "v0"), "llava_v0"),
    (("mpt-7b",), "mpt"),
    (("mpt-30b",), "mpt"),
)
_DEFAULT = "vicuna_v1"


def guess_template(model_name: str) -> TemplateGuess:
    """Choose a template by the name of a released checkpoint; the last resort where nothing else says which.

    A name that is in no row gets `vicuna_v1`, the prompt of InternVL-Chat V1.0 and LLaVA-1.5.
    """
    name = model_name.lower().replace("_", "-")
    for parts, template in _FALLBACK:
        if all(part in name for part in parts):
            pattern = " and ".join(repr(part) for part in parts)
            return TemplateGuess(TEMPLATES[template], f"the name {model_name!r} contains {pattern}")
    return TemplateGuess(
        TEMPLATES[_DEFAULT], f"the name {model_name!r} is of no released checkpoint, and this is the default"
    )
