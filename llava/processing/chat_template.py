"""A `ChatTemplate` -> the Jinja text that makes plain transformers write the same prompt.

Used by `tokenizer.save_tokenizer`. transformers encodes a rendered conversation in one pass and adds no
begin-of-sequence token, so the Jinja text writes it, and for non-legacy LLaMA tokenizers also the space that
the original's chunk-by-chunk encoding puts in front of the text after a picture.
"""

from __future__ import annotations

import json
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.processing.encoding import begins_with_bos, is_nonlegacy_sentencepiece
from llava.rendering import Turn
from llava.templates import ChatTemplate

_CONTENT = "\0"
_SYSTEM = "\1"
_PLACE = "<|picture|>"
"""Stands for a picture while llama.cpp's template is rendered; no person writes it."""

_PROMPT = """\
{{%- set ns = namespace(prompt='', system={system}, role='assistant', content='', start='') -%}}
{{%- for message in messages -%}}
{{%- if message['content'] is string -%}}
{{%- set ns.content = message['content'] -%}}
{{%- else -%}}
{{%- set ns.content = '' -%}}
{{%- for part in message['content'] -%}}
{part}
{{%- endfor -%}}
{{%- endif -%}}{markers}
{{%- if message['role'] == 'system' -%}}
{{%- set ns.system = {system_header} + ns.content -%}}
{{%- elif message['role'] == ns.role or message['role'] not in ['user', 'assistant'] -%}}
{{{{- raise_exception('roles must alternate: user, assistant, user, ...') -}}}}
{{%- else -%}}
{{%- set ns.role = message['role'] -%}}
{{%- if ns.prompt == '' -%}}
{{%- set ns.start = {before_system} + ns.system + {after_system} if ns.system else {start} -%}}
{{%- set ns.prompt = ns.start + ns.content -%}}
{{%- else -%}}
{{%- set ns.prompt = ns.prompt + ({to_answer} if ns.role == 'assistant' else {to_question}) + ns.content -%}}
{{%- endif -%}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}
{{%- set ns.prompt = ns.prompt + {open_answer} -%}}
{{%- else -%}}
{{%- set ns.prompt = ns.prompt + ({after_answer} if ns.role == 'assistant' else {after_question}) -%}}
{{%- endif -%}}
"""
_PART = "{{%- set ns.content = ns.content + ({image} if part['type'] == 'image' else part['text']) -%}}"
_CHUNKS = """\
{{{{- {bos} -}}}}
{{%- for chunk in ns.prompt.split('{image_token}') -%}}
{{{{- '' if loop.first else '{image_token}' -}}}}
{{{{- {space} if chunk -}}}}
{{{{- chunk -}}}}
{{%- endfor -%}}
"""
_TEXT_PART = "{{%- set ns.content = ns.content + part['text'] -%}}"
_MARKERS = """
{{%- set text = ns.content -%}}
{{%- for piece in text.split('<__media') -%}}
{{%- if loop.first -%}}
{{%- set ns.content = piece -%}}
{{%- else -%}}
{{%- set ns.marker = '<__media' + piece.split('__>')[0] + '__>' -%}}
{{%- set ns.content = ns.content + {image} + piece[(piece.split('__>')[0] | length) + 3:] -%}}
{{%- endif -%}}
{{%- endfor -%}}"""
_RUNS = """\
{{%- for chunk in ns.prompt.split('{image_token}') -%}}
{{{{- '' if loop.first else ns.marker -}}}}
{{%- for run in chunk.split({eos}) -%}}
{{{{- '' if loop.first else {eos} -}}}}
{{{{- {space} if run -}}}}
{{{{- run -}}}}
{{%- endfor -%}}
{{%- endfor -%}}
"""


def chat_template(template: ChatTemplate, tokenizer: PreTrainedTokenizerFast, *, im_start_end: bool) -> str:
    """Return Jinja text; messages are user and assistant in turn, a system message replaces the system text.

    Content is text, or parts of type "image" and "text"; a picture part brings its own newline.
    """
    literals = _literals(template, tokenizer, im_start_end=im_start_end)
    literals |= {"space": _space(tokenizer), "image_token": DEFAULT_IMAGE_TOKEN}
    prompt = _PROMPT.format(**literals, part=_PART.format(**literals), markers="")
    return prompt + _CHUNKS.format(**literals)


def llama_cpp_template(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerFast, *, im_start_end: bool
) -> str:
    """Return Jinja text for llama.cpp's server, whose tokenizer is told to add no leading space.

    llama.cpp gives a picture as a marker `<__media...__>` in the text, encodes what is between two of them
    apart, and puts the begin-of-sequence token in front. The spaces that our tokenizer puts in front of runs
    of text are written out here.
    """
    literals = _literals(template, tokenizer, im_start_end=im_start_end)
    literals |= {
        "image": literals["image"].replace(DEFAULT_IMAGE_TOKEN, _PLACE),
        "space": _run_space(tokenizer),
        "eos": json.dumps(tokenizer.eos_token),
        "image_token": _PLACE,
    }
    prompt = _PROMPT.format(**literals, part=_TEXT_PART.format(), markers=_MARKERS.format(**literals))
    return prompt + _RUNS.format(**literals)


def _literals(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerFast, *, im_start_end: bool
) -> dict[str, str]:
    """Return what a template writes between contents, each as a Jinja literal."""
    question, answer = Turn("user", (_CONTENT,)), Turn("assistant", (_CONTENT,))
    marked = replace(template, system=_SYSTEM)

    def text(*turns: Turn, is_open: bool = False, style: ChatTemplate = marked) -> list[str]:
        spans = style.render(turns, add_generation_prompt=is_open)
        return "".join(span.text for span in spans).split(_CONTENT)

    before_system, after_system = text(question)[0].split(_SYSTEM)
    header, newline, _ = template.system.partition("\n")
    image = DEFAULT_IMAGE_TOKEN
    if im_start_end:
        image = DEFAULT_IM_START_TOKEN + image + DEFAULT_IM_END_TOKEN
    values = {
        "system": template.system,
        "system_header": header + newline if template.style == "MPT" else "",
        "image": image + "\n",
        "before_system": before_system,
        "after_system": after_system,
        "start": text(question, style=replace(template, system=""))[0],
        "to_answer": text(question, answer)[1],
        "to_question": text(question, answer, question)[2],
        "open_answer": text(question, is_open=True)[1],
        "after_question": text(question)[1],
        "after_answer": text(question, answer)[2],
        "bos": tokenizer.bos_token if begins_with_bos(tokenizer) else "",
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def _space(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the Jinja expression for what goes in front of a chunk."""
    if not is_nonlegacy_sentencepiece(tokenizer):
        return "''"
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    special = [token.content for token in added if token.special]
    tests = " or ".join(f"chunk.startswith({json.dumps(content)})" for content in special)
    return f"('' if {tests} else ' ')"


def _run_space(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the Jinja expression for what goes in front of a run of text between end-of-sequence tokens."""
    if is_nonlegacy_sentencepiece(tokenizer):
        return "(" + _space(tokenizer).replace("chunk.", "run.") + " if loop.first else '')"
    return "' '"
